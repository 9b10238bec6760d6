"""Who the tenants are: in the schema `public`, of everybody."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Tenant(TenantMixin):
    name = models.CharField(max_length=100)


class Domain(DomainMixin):
    pass
