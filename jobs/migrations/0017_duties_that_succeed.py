from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0016_lanes_in_the_order_of_bytes'),
    ]

    operations = [
        migrations.AlterField(
            model_name='duty',
            name='name',
            field=models.CharField(max_length=64, primary_key=True, serialize=False),
        ),
        migrations.AddField(
            model_name='duty',
            name='succeeded_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='duty',
            name='failed_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='duty',
            name='error',
            field=models.TextField(blank=True, default='', help_text='What it last raised'),
        ),
        migrations.AddField(
            model_name='duty',
            name='every_seconds',
            field=models.FloatField(blank=True, help_text='How often it is to be done', null=True),
        ),
    ]
