from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0020_mappings'),
    ]

    operations = [
        migrations.AddField(
            model_name='worker',
            name='deaf_since',
            field=models.DateTimeField(blank=True, help_text='Since when Redis has not answered it', null=True),
        ),
    ]
