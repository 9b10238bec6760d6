"""SQLAlchemy: one pool for all tenants, which sets `app.tenant_id` for each request."""

import contextlib
import random
import threading

from app import CLIENTS, INPUT, ROUNDS, done, own
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy_models import Client, Lead


def engines():
    for driver in ["psycopg", "psycopg2"]:
        url = INPUT["url"].replace("postgres://", f"postgresql+{driver}://")
        yield create_engine(url, pool_size=3, max_overflow=0)


@contextlib.contextmanager
def request(engine, tenant, how):
    """What a web application does for each request."""
    with engine.connect() as connection, Session(connection) as session:
        if how == 0:
            session.execute(text("SELECT set_config('app.tenant_id', :tenant, true)"), {"tenant": tenant})
        elif how == 1:
            session.execute(text(f"SET LOCAL app.tenant_id = '{tenant}'"))
        else:
            session.execute(text(f"SET app.tenant_id = '{tenant}'"))
        yield session
        if how == 2:
            session.rollback()
            session.execute(text("RESET app.tenant_id"))
            session.commit()


def work(engine, number, errors):
    dice = random.Random(number)
    try:
        for _ in range(ROUNDS * len(INPUT["tenants"])):
            tenant = dice.choice(INPUT["tenants"])
            with request(engine, tenant, dice.randrange(3)) as session:
                own(tenant, session.scalars(select(Client.name).order_by(Client.id)))
                session.add_all(
                    Lead(first_name=f"{tenant} {number}", last_name=str(i)) for i in range(5)
                )
                session.flush()
                with session.begin_nested() as savepoint:
                    session.execute(text("DELETE FROM leads"))
                    savepoint.rollback()
                own(tenant, session.scalars(select(Lead.first_name)))
                assert session.scalar(select(func.count(func.distinct(Lead.tenant_id)))) == 1
                session.commit()
            with request(engine, tenant, 0) as session:
                own(tenant, session.scalars(select(Lead.first_name).execution_options(yield_per=7)))
            try:
                with request(engine, tenant, 1) as session:
                    session.execute(text("SELECT 1 / 0"))
                raise AssertionError("no error")
            except DBAPIError as error:
                assert error.orig.__class__.__name__ == "DivisionByZero", error
            with Session(engine) as session:
                assert session.scalars(select(Client.name)).all() == []
    except BaseException as error:  # noqa: BLE001
        import traceback

        errors.append(f"{number}: {error!r}\n{traceback.format_exc()}")


errors = []
made = list(engines())
threads = [
    threading.Thread(target=work, args=(made[n % 2], n, errors)) for n in range(CLIENTS * len(INPUT["tenants"]))
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for engine in made:
    engine.dispose()
done(errors)
