"""SQLAlchemy: the ORM on psycopg and psycopg2, with its pool of connections."""

from app import CLIENTS, ROUNDS, in_threads, own
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy_models import Client, Lead


def client(tenant, url, number):
    driver = ["psycopg", "psycopg2"][number % 2]
    engine = create_engine(url.replace("postgres://", f"postgresql+{driver}://"), pool_size=1, max_overflow=0)
    try:
        for n in range(ROUNDS):
            with Session(engine) as session:
                own(tenant, session.scalars(select(Client.name).order_by(Client.id)))
                session.add_all(
                    Lead(tenant_id=tenant, first_name=f"{tenant} {number}", last_name=str(i)) for i in range(20)
                )
                session.flush()
                with session.begin_nested() as savepoint:
                    session.execute(text("DELETE FROM leads"))
                    savepoint.rollback()
                session.commit()
                own(tenant, session.scalars(select(Lead.first_name)))
                total = session.scalar(select(func.count()).select_from(Lead))
                assert total >= 20, total
                stream = session.scalars(select(Lead.first_name).execution_options(yield_per=7))
                own(tenant, stream)
            try:
                with Session(engine) as session:
                    session.execute(text("SELECT 1 / 0"))
                raise AssertionError("no error")
            except DBAPIError as error:
                assert error.orig.__class__.__name__ == "DivisionByZero", error
    finally:
        engine.dispose()


assert CLIENTS > 1
in_threads(client)
