from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0017_duties_that_succeed'),
    ]

    operations = [
        migrations.AddField(
            model_name='queuecontrol',
            name='oldest_threshold_seconds',
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
    ]
