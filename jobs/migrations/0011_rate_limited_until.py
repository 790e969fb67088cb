from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0010_worker_facts'),
    ]

    operations = [
        migrations.RenameField(model_name='limit', old_name='paused_until', new_name='rate_limited_until'),
        migrations.AlterField(
            model_name='limit',
            name='rate_limited_until',
            field=models.DateTimeField(blank=True, help_text='A job has raised RateLimited: nothing starts until then', null=True),
        ),
        migrations.AddField(
            model_name='queuecontrol',
            name='rate_limited_until',
            field=models.DateTimeField(blank=True, help_text='A job has raised RateLimited: nothing starts until then', null=True),
        ),
    ]
