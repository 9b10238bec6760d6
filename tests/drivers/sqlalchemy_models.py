"""The tables of the tests as SQLAlchemy's ORM has them."""

from sqlalchemy import BigInteger, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Client(Base):
    __tablename__ = "clients"
    tenant_id: Mapped[str] = mapped_column(String, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]


class Lead(Base):
    __tablename__ = "leads"
    tenant_id: Mapped[str] = mapped_column(
        String, primary_key=True, server_default=text("current_setting('app.tenant_id')")
    )
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
