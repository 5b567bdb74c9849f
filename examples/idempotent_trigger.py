"""A webhook that is delivered twice makes one run: the idempotency key leads to the run that is there."""

import asyncio

from holdfast import Holdfast

app = Holdfast("sqlite:///payments.db")


@app.job
async def book_payment(payment_id: str, cents: int) -> str:  # a job without steps needs no Step
    return f"booked {cents / 100:.2f} for {payment_id}"


async def on_webhook(payment_id: str, cents: int) -> None:
    run = await book_payment.options(idempotency_key=payment_id).trigger(payment_id, cents)
    print(run.disposition, "->", await run.result())


async def main() -> None:
    async with app:
        await on_webhook("pay_31", 1250)
        await on_webhook("pay_31", 1250)  # the sender did not get our answer and tries again
        await on_webhook("pay_32", 990)
        print(len(await book_payment.get_runs()), "runs")


asyncio.run(main())
