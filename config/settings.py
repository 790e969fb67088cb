"""All settings, in one file. Values that differ between machines come from `config.env`."""

from pathlib import Path
from urllib.parse import quote

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy

from config import env as environment
from webhooks.addresses import networks

BASE_DIR = Path(__file__).resolve().parent.parent
env = environment.read()

# --- Security -----------------------------------------------------------------------------------------------------
SECRET_KEY = env.secret_key.get_secret_value()
DEBUG = env.debug
SITE_URL = env.site_url
ALLOWED_HOSTS = [host.strip() for host in env.allowed_hosts.split(",") if host.strip()]
CSRF_TRUSTED_ORIGINS = [SITE_URL]
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
if env.behind_tls_proxy:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    # The probes come from inside, over plain HTTP.
    SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$", r"^health$"]
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True

# --- Applications -------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "config.apps.ConfigConfig",
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.postgres",
    "django.contrib.staticfiles",
    "django_htmx",
    "ninja",
    "django_celery_beat",
    "django_celery_results",
    "jobs",
    "notifications",
    "media_jobs",
    "reports",
    "webhooks",
    "crm",
    "accounts",
]
MIDDLEWARE = [
    "jobs.correlation.Correlation",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "config.json_errors.JsonErrors",
    "config.refuse_nul.RefuseNul",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATA_UPLOAD_MAX_MEMORY_SIZE = 256 * 1024

# --- Database -----------------------------------------------------------------------------------------------------
_database = dj_database_url.parse(env.database_url, conn_max_age=600, conn_health_checks=True)
DATABASES = {
    "default": {
        **_database,
        "PASSWORD": _database["PASSWORD"] or env.database_password.get_secret_value(),
        # A dead server is noticed within seconds, not after the kernel's two hours.
        "OPTIONS": {
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            # What the URL says comes last, such as ?sslmode=verify-full&sslrootcert=/etc/ssl/ca.pem.
            **_database.get("OPTIONS", {}),
        },
    }
}
if DATABASES["default"]["ENGINE"] != "django.db.backends.postgresql":
    raise ImproperlyConfigured(
        "DATABASE_URL: expected a PostgreSQL server, like postgres://user:password@host:5432/name"
    )

# --- Users --------------------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "admin:login"
PASSWORD_HASHERS = [
    "accounts.hashers.Argon2id",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator",
        "OPTIONS": {"user_attributes": ["email", "name"]},
    },
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

# --- Language and time --------------------------------------------------------------------------------------------
LANGUAGE_CODE = "en-us"
USE_I18N = False
TIME_ZONE = "UTC"
USE_TZ = True

# --- Admin --------------------------------------------------------------------------------------------------------
UNFOLD = {
    "SITE_TITLE": "Handoff",
    "SITE_HEADER": "Handoff",
    "SITE_SUBHEADER": "Background jobs",
    "SITE_SYMBOL": "move_down",
    "SITE_URL": None,
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("config/favicon.svg")},
    ],
    "STYLES": [lambda request: static("jobs/admin.css")],
    "SIDEBAR": {
        "show_search": True,
        "navigation": [
            {
                "title": "Jobs",
                "items": [
                    {"title": "Queues", "icon": "dashboard", "link": reverse_lazy("queues")},
                    {"title": "Statistics", "icon": "bar_chart", "link": reverse_lazy("statistics")},
                    {
                        "title": "Jobs",
                        "icon": "list_alt",
                        "link": reverse_lazy("admin:jobs_job_changelist"),
                        "permission": lambda request: request.user.has_perm("jobs.view_job"),
                    },
                    {
                        "title": "Audit",
                        "icon": "history",
                        "link": reverse_lazy("admin:jobs_auditentry_changelist"),
                        "permission": lambda request: request.user.has_perm("jobs.view_auditentry"),
                    },
                    {
                        "title": "Workers",
                        "icon": "memory",
                        "link": reverse_lazy("admin:jobs_worker_changelist"),
                        "permission": lambda request: request.user.has_perm("jobs.view_worker"),
                    },
                    {
                        "title": "Queue limits",
                        "icon": "speed",
                        "link": reverse_lazy("admin:jobs_queuecontrol_changelist"),
                        "permission": lambda request: request.user.has_perm("jobs.view_queuecontrol"),
                    },
                    {
                        "title": "Periodic tasks",
                        "icon": "schedule",
                        "link": reverse_lazy("admin:django_celery_beat_periodictask_changelist"),
                        "permission": lambda request: request.user.has_perm("django_celery_beat.view_periodictask"),
                    },
                    {"title": "Flower", "icon": "local_florist", "link": reverse_lazy("flower")},
                ],
            },
            {
                "title": "Media",
                "separator": True,
                "items": [
                    {
                        "title": "Pictures",
                        "icon": "image",
                        "link": reverse_lazy("admin:media_jobs_picture_changelist"),
                        "permission": lambda request: request.user.has_perm("media_jobs.view_picture"),
                    },
                    {
                        "title": "Videos",
                        "icon": "movie",
                        "link": reverse_lazy("admin:media_jobs_video_changelist"),
                        "permission": lambda request: request.user.has_perm("media_jobs.view_video"),
                    },
                    {
                        "title": "Reports",
                        "icon": "picture_as_pdf",
                        "link": reverse_lazy("admin:reports_report_changelist"),
                        "permission": lambda request: request.user.has_perm("reports.view_report"),
                    },
                ],
            },
            {
                "title": "Connections",
                "separator": True,
                "items": [
                    {
                        "title": "Webhook endpoints",
                        "icon": "outbound",
                        "link": reverse_lazy("admin:webhooks_endpoint_changelist"),
                        "permission": lambda request: request.user.has_perm("webhooks.view_endpoint"),
                    },
                    {
                        "title": "Deliveries",
                        "icon": "send",
                        "link": reverse_lazy("admin:webhooks_delivery_changelist"),
                        "permission": lambda request: request.user.has_perm("webhooks.view_delivery"),
                    },
                    {
                        "title": "Webhook sources",
                        "icon": "input",
                        "link": reverse_lazy("admin:webhooks_source_changelist"),
                        "permission": lambda request: request.user.has_perm("webhooks.view_source"),
                    },
                    {
                        "title": "Incoming events",
                        "icon": "inbox",
                        "link": reverse_lazy("admin:webhooks_incomingevent_changelist"),
                        "permission": lambda request: request.user.has_perm("webhooks.view_incomingevent"),
                    },
                    {
                        "title": "CRM contacts",
                        "icon": "contacts",
                        "link": reverse_lazy("admin:crm_crmcontact_changelist"),
                        "permission": lambda request: request.user.has_perm("crm.view_crmcontact"),
                    },
                ],
            },
            {
                "title": "People",
                "separator": True,
                "items": [
                    {
                        "title": "Users",
                        "icon": "person",
                        "link": reverse_lazy("admin:accounts_user_changelist"),
                        "permission": lambda request: request.user.has_perm("accounts.view_user"),
                    },
                    {
                        "title": "Groups",
                        "icon": "group",
                        "link": reverse_lazy("admin:auth_group_changelist"),
                        "permission": lambda request: request.user.has_perm("auth.view_group"),
                    },
                    {
                        "title": "E-mail log",
                        "icon": "mail",
                        "link": reverse_lazy("admin:notifications_emaillog_changelist"),
                        "permission": lambda request: request.user.has_perm("notifications.view_emaillog"),
                    },
                ],
            },
        ],
    },
}

# --- Files --------------------------------------------------------------------------------------------------------
STATIC_URL = "static/"
STATIC_ROOT = env.handoff_home / "static"
MEDIA_ROOT = env.handoff_home / "media"
STORAGES = {
    # Private: nothing serves MEDIA_ROOT; files leave through views that ask who wants them.
    "default": {"BACKEND": "config.storage.WholeFiles", "OPTIONS": {"allow_overwrite": True}},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
PICTURE_MAX_BYTES = env.picture_max_bytes
PICTURE_MAX_PIXELS = env.picture_max_pixels
VIDEO_MAX_BYTES = env.video_max_bytes
VIDEO_MAX_PIXELS = env.video_max_pixels
# The web process serves the admin's own assets straight from the packages: nothing to collect before the first start.
WHITENOISE_USE_FINDERS = True

# --- Mail ---------------------------------------------------------------------------------------------------------
EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
EMAIL_HOST = env.email_host
EMAIL_PORT = env.email_port
EMAIL_HOST_USER = env.email_host_user
EMAIL_HOST_PASSWORD = env.email_host_password.get_secret_value()
EMAIL_USE_TLS = env.email_use_tls
EMAIL_USE_SSL = env.email_use_ssl
EMAIL_TIMEOUT = env.email_timeout_seconds
DEFAULT_FROM_EMAIL = env.default_from_email

# --- Celery -------------------------------------------------------------------------------------------------------
REDIS_URL = (
    str(env.redis_url)
    if env.redis_url
    else f"redis://:{quote(env.redis_password.get_secret_value(), safe='')}@{env.redis_host}:{env.redis_port}/0"
)
CELERY_BROKER_URL = REDIS_URL
# What the ledger needs of Celery it brings itself: jobs/defaults.py.
CELERY_TIMEZONE = "UTC"
# Django's own task API, from Django 6.0 on or by the package django-tasks.
TASKS = {"default": {"BACKEND": "jobs.django_tasks.LedgerTaskBackend"}}

# --- The ledger ---------------------------------------------------------------------------------------------------
JOBS_LEASE_SECONDS = env.jobs_lease_seconds
JOBS_HEARTBEAT_SECONDS = env.jobs_heartbeat_seconds
JOBS_GRACE_SECONDS = env.jobs_grace_seconds
JOBS_CANCEL_GRACE_SECONDS = env.jobs_cancel_grace_seconds
JOBS_DISPATCH_SECONDS = env.jobs_dispatch_seconds
JOBS_LOG_LINES = env.jobs_log_lines
JOBS_LOG_BYTES = env.jobs_log_bytes
JOBS_PAYLOAD_MAX_BYTES = env.jobs_payload_max_bytes
JOBS_RESULT_MAX_BYTES = env.jobs_result_max_bytes

# --- Webhooks -----------------------------------------------------------------------------------------------------
WEBHOOK_ALLOWED_NETWORKS = networks(env.webhook_allowed_networks)

# --- CRM ----------------------------------------------------------------------------------------------------------
CRM_BASE_URL = env.crm_base_url
CRM_TOKEN = env.crm_token.get_secret_value()

# --- Flower -------------------------------------------------------------------------------------------------------
FLOWER_URL = env.flower_url

# --- Errors -------------------------------------------------------------------------------------------------------
SENTRY_DSN = env.sentry_dsn

# --- Logs ---------------------------------------------------------------------------------------------------------
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"correlation": {"()": "jobs.correlation.AddCorrelationId"}},
    "formatters": {"line": {"format": "%(asctime)s %(correlation_id)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["correlation"]}},
    "root": {"handlers": ["stderr"], "level": env.log_level},
    # The ledger logs each start and end itself, in one line (`jobs.run`); Celery's errors still come through.
    "loggers": {
        **{
            name: {"level": "WARNING"}
            for name in ("celery.app.trace", "celery.worker.strategy", "kombu", "httpx", "httpcore", "fontTools")
        },
        # Reports learn from it which page is being laid out; nobody else wants to know.
        "weasyprint.progress": {"level": "INFO", "propagate": False},
    },
}
