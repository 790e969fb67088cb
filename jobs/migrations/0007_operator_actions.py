import django.db.models.deletion
import django.db.models.functions.datetime
import jobs.models
import kombu.utils.json
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0006_limits'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name='attempt',
            name='claim_token',
            field=models.CharField(blank=True, default='', help_text='Names the run', max_length=120),
        ),
        migrations.CreateModel(
            name='BulkAction',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('run again', 'Retry'), ('cancel', 'Cancel'), ('promote', 'Promote')], max_length=10)),
                ('filter', models.JSONField(default=dict, help_text='As JobFilter.as_json() says it')),
                ('requested_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), help_text='Nothing that came to match later is touched')),
                ('actor_name', models.CharField(max_length=255)),
                ('job_id', models.UUIDField(blank=True, help_text='The job that carries it out', null=True)),
                ('target_count', models.PositiveIntegerField(help_text='Jobs that matched when it was requested')),
                ('cursor', models.UUIDField(blank=True, help_text='The last job that was looked at, in the order of ids', null=True)),
                ('done_count', models.PositiveIntegerField(default=0)),
                ('refused_count', models.PositiveIntegerField(default=0)),
                ('refusals', models.JSONField(blank=True, default=list, help_text='The first sentences of those that were refused')),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
                ('actor', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
        ),
        migrations.CreateModel(
            name='AuditEntry',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('actor_name', models.CharField(help_text='Who it was, also when the user is gone or never was one', max_length=255)),
                ('thing_type', models.CharField(help_text="The model's name: job, queuecontrol, bulkaction", max_length=32)),
                ('thing_id', models.CharField(max_length=64)),
                ('thing', models.CharField(help_text='In words, also when the row is gone', max_length=300)),
                ('what', models.TextField()),
                ('details', models.JSONField(blank=True, decoder=jobs.models.PayloadDecoder, encoder=kombu.utils.json.JSONEncoder, null=True)),
                ('actor', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('bulk_action', models.ForeignKey(blank=True, help_text='Part of this', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='entries', to='jobs.bulkaction')),
            ],
            options={
                'verbose_name_plural': 'audit entries',
                'indexes': [models.Index(fields=['thing_id'], name='auditentry_thing')],
            },
        ),
    ]
