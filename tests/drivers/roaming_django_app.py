"""Django with django-tenants. `migrate` makes the schemas on one shard, `requests` serves all tenants by one URL."""

import os
import random
import sys
import threading

from app import CLIENTS, INPUT, ROUNDS, done, own

os.environ["DATABASE_URL"] = INPUT["url"]
os.environ["DJANGO_SETTINGS_MODULE"] = "django_site.settings"

import django  # noqa: E402

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import Error, connection, transaction  # noqa: E402
from django_site.crm.models import Client, Lead  # noqa: E402
from django_site.customers.models import Domain, Tenant  # noqa: E402
from django_tenants.utils import schema_context, tenant_context  # noqa: E402


def migrate():
    call_command("migrate_schemas", "--shared", verbosity=0)
    for name in INPUT["tenants"]:
        tenant = Tenant(schema_name=f"tenant_{name}", name=name)
        # Everybody is known everywhere; a schema is where its tenant lives.
        tenant.auto_create_schema = name in INPUT["here"]
        tenant.save(verbosity=0)
        Domain.objects.create(domain=f"{name}.example.com", tenant=tenant, is_primary=True)
        if name in INPUT["here"]:
            with tenant_context(tenant):
                Client.objects.bulk_create(Client(name=f"{name} client {n}") for n in range(1, 4))


def request(name, number):
    with schema_context("public"):
        # What the middleware does with the host name of a request.
        tenant = Domain.objects.select_related("tenant").get(domain=f"{name}.example.com").tenant
    assert tenant.name == name, tenant.name
    with tenant_context(tenant):
        own(name, Client.objects.order_by("id").values_list("name", flat=True))
        with transaction.atomic():
            client = Client.objects.order_by("?").first()
            Lead.objects.create(client=client, first_name=f"{name} {number}")
            try:
                with transaction.atomic():
                    Lead.objects.all().delete()
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT 1 / 0")
                raise AssertionError("no error")
            except Error as error:
                assert "division by zero" in str(error), error
            own(name, Lead.objects.values_list("first_name", flat=True))
        own(name, (lead.client.name for lead in Lead.objects.select_related("client")))
        own(name, Lead.objects.filter(first_name__startswith=name).values_list("first_name", flat=True).iterator())


def work(number, errors):
    dice = random.Random(number)
    try:
        for _ in range(ROUNDS * len(INPUT["tenants"])):
            request(dice.choice(INPUT["tenants"]), number)
    except BaseException as error:  # noqa: BLE001
        import traceback

        errors.append(f"{number}: {error!r}\n{traceback.format_exc()}")
    finally:
        connection.close()


errors = []
if INPUT["do"] == "migrate":
    migrate()
else:
    count = CLIENTS * len(INPUT["tenants"])
    threads = [threading.Thread(target=work, args=(number, errors)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
sys.stdout.flush()
done(errors)
