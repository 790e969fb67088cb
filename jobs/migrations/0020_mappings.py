import jobs.fields
import jobs.payloads
import kombu.utils.json
from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0019_arrivals'),
    ]

    operations = [
        migrations.AlterField(
            model_name='job',
            name='follow_ups',
            field=jobs.fields.MappingField(blank=True, decoder=jobs.payloads.PayloadDecoder, default=dict, encoder=kombu.utils.json.JSONEncoder, help_text="Celery's link, link_error and chain"),
        ),
        migrations.AlterField(
            model_name='job',
            name='headers',
            field=jobs.fields.MappingField(blank=True, decoder=jobs.payloads.PayloadDecoder, default=dict, encoder=kombu.utils.json.JSONEncoder, help_text='Custom message headers of the caller'),
        ),
    ]
