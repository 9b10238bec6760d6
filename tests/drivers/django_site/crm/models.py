"""What each tenant has in a schema of its own."""

from django.db import models


class Client(models.Model):
    name = models.CharField(max_length=100)


class Lead(models.Model):
    client = models.ForeignKey(Client, on_delete=models.CASCADE)
    first_name = models.CharField(max_length=100)
