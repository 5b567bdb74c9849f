"""Input, steps and output keep their types: models, dates and decimals come back as what they were.

Wrong input is refused before anything is written.
"""

import asyncio
from datetime import date
from decimal import Decimal

from pydantic import BaseModel, Field

from holdfast import Holdfast, Step, ValidationError

app = Holdfast("sqlite:///invoices.db")


class Order(BaseModel):
    customer: str
    due: date
    prices: list[Decimal] = Field(min_length=1)


class Invoice(BaseModel):
    number: int
    due: date
    total: Decimal


def add_up(order: Order) -> Decimal:
    return sum(order.prices, Decimal(0))


@app.job
async def bill(step: Step, order: Order) -> Invoice:
    total = await step.run("add-up", add_up, order)  # a Decimal, also when it is replayed
    return Invoice(number=1, due=order.due, total=total)


async def main() -> None:
    async with app:
        order = Order(customer="Ada", due=date(2027, 1, 31), prices=[Decimal("0.10"), Decimal("0.20")])
        run = await bill.trigger(order)
        print(repr(await run.result()))
        print("stored as", run.input)
        try:
            await bill.trigger({"customer": "Ada", "due": "soon", "prices": []})  # type: ignore[arg-type]
        except ValidationError as error:
            print(error)


asyncio.run(main())
