from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0021_deaf_workers'),
    ]

    operations = [
        migrations.AddField(
            model_name='worker',
            name='answered_since',
            field=models.DateTimeField(blank=True, help_text='Since when PostgreSQL has answered each of its renewals', null=True),
        ),
    ]
