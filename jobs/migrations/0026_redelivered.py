from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0025_one_schedule_at_a_time'),
    ]

    operations = [
        migrations.AddField(
            model_name='job',
            name='redelivered',
            field=models.BooleanField(db_default=False, default=False, help_text='Its last run was lost, given back or rejected: it may have begun'),
        ),
    ]
