from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0008_log_lines'),
    ]

    operations = [
        migrations.AlterField(
            model_name='bulkaction',
            name='job_id',
            field=models.UUIDField(help_text='The job that carries it out'),
        ),
    ]
