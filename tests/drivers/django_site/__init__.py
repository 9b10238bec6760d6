"""A Django project with a schema for each tenant, by django-tenants."""
