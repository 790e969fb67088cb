import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("path", ["/api/nothing", "/api/", "/api/jobs/x/y"])
def test_a_wrong_path_of_the_api_is_404_in_the_shape_of_all_errors(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.json() == {"error": {"message": "There is no such thing here.", "fields": {}}}


@pytest.mark.parametrize("path", ["/signup", "/login", "/api/tokens"])
def test_a_wrong_method_is_405_in_the_shape_of_all_errors_and_names_the_right_one(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 405
    assert response["Allow"] == "POST"
    assert response.json() == {"error": {"message": "This address does not take that method.", "fields": {}}}


def test_pages_for_people_stay_pages(client: Client) -> None:
    response = client.get("/nothing")
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")
    assert client.get("/unsubscribe/x")["Content-Type"].startswith("text/html")


def test_the_description_of_the_api_is_served_from_here_alone(client: Client) -> None:
    page = client.get("/api/docs").content.decode()
    assert "http" not in page.replace('"http"', "")
    assert set(client.get("/api/openapi.json").json()["paths"]) == {
        "/signup",
        "/login",
        "/api/tokens",
        "/api/jobs/{job_id}",
        "/api/images",
        "/api/images/{image_id}",
        "/api/images/{image_id}/renditions/{size_pixels}",
        "/api/videos",
        "/api/videos/{video_id}",
        "/api/videos/{video_id}/poster",
        "/api/reports",
        "/api/reports/{report_id}",
        "/api/reports/{report_id}/download",
        "/api/webhook-endpoints",
        "/api/webhook-endpoints/{endpoint_id}",
        "/webhooks/in/{source}",
    }


def test_the_address_of_the_site_leads_to_the_admin(client: Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")
