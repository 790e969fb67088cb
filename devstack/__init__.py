"""The local stack: embedded PostgreSQL and Redis, a mail catcher, and a supervisor for all processes of the project.

`python -m devstack up` starts before Django can: it makes the settings that Django reads. So this package is no Django
app, imports no app of the project but the list of queues, and is imported by nobody; production never sees it.
"""
