"""`rnnstream selftest`: the evidence that the same tokens give the same bits, on this machine; or how far they are apart."""

from __future__ import annotations

from typing import Any

import click

from rnnstream.cli import options, out
from rnnstream.cli.options import load_model
from rnnstream.engine import selftest as measure

PROMISES = ("bits", "a tolerance, not bits")


@click.command()
@click.argument("model", required=False)
@options.as_json
@click.pass_context
def selftest(ctx: click.Context, model: str | None, as_json: bool) -> None:
    """Prove that MODEL gives a session the same bits in every company, on this machine.

    MODEL is a model file, another framework's file, module:attribute or an entry point; absent, the model that ships with the
    package. Three things are measured: the tiles in which each matrix is multiplied, a whole step, and sessions side by side in
    one process against each of them run alone. Exit status 1 where a bit differs. A model that promises a tolerance and not
    bits, as one does that another library runs in batches, is held to that: sessions in company may differ from each alone by
    rounding.
    """
    network = load_model(model)
    before, held = measure.blas_threads()
    machine = {
        "model": network.name,
        "digest": network.digest,
        "promise": PROMISES[measure.tolerance(network) > 0],
        "kernels": network.numerics,
        "blas_threads": before,
        "blas_threads_in_steps": held,
    }
    products = measure.products(network)
    step = measure.whole_step(network)
    companies = [measure.company(network, sessions) for sessions in measure.COMPANIES]
    wild = measure.wild_company(network, max(measure.COMPANIES))
    companies += [wild] if wild else []
    passed = (
        held <= 1
        and step is not False
        and all(product.passed for product in products)
        and all(company.passed for company in companies)
    )
    (_print_json if as_json else _print)(machine, products, step, companies, passed)
    ctx.exit(0 if passed else 1)


def _print_json(
    machine: dict[str, Any],
    products: list[measure.ProductFound],
    step: bool | None,
    companies: list[measure.CompanyFound],
    passed: bool,
) -> None:
    def line(check: str, **found: Any) -> None:
        click.echo(out.json_line({"check": check, **found}))

    line("machine", **machine)
    for product in products:
        line(
            "product",
            name=product.name,
            shape=product.shape,
            dtype=product.dtype,
            tried=[{"tile": [tile.rows, tile.columns], "exact": exact} for tile, exact in product.tried],
            tile=[product.chosen.rows, product.chosen.columns],
            plain_exact=product.plain,
            passed=product.passed,
        )
    if step is not None:
        line("step", passed=step)
    for company in companies:
        line(
            "company",
            sessions=company.sessions,
            beside=company.beside,
            tokens=company.tokens,
            largest_batch=company.largest,
            different=company.different,
            largest_difference=company.largest_difference,
            tolerance=company.tolerance,
            passed=company.passed,
        )
    line("result", passed=passed)


def _print(
    machine: dict[str, Any],
    products: list[measure.ProductFound],
    step: bool | None,
    companies: list[measure.CompanyFound],
    passed: bool,
) -> None:
    out.table("", ("", ""), [(key.replace("_", " "), value) for key, value in machine.items()])
    if products:
        click.echo()
        out.table(
            "Products: tiles (rows x columns) that were tried, and the one in use",
            ("matrix", "shape", "dtype", "tried", "in use", f"{measure.PLAIN_ROWS} rows untiled", ""),
            [
                (
                    product.name,
                    "{} x {}".format(*product.shape),
                    product.dtype,
                    ", ".join(f"{tile}: {_exact(exact)}" for tile, exact in product.tried),
                    product.chosen,
                    _exact(product.plain),
                    _verdict(product.passed),
                )
                for product in products
            ],
        )
    click.echo()
    tolerance = max(found.tolerance for found in companies)
    how = f"within {tolerance:g}: this model promises a tolerance, not bits" if tolerance else "bit by bit"
    out.table(
        f"Tokens in company against each session alone, {how}",
        ("sessions", "beside", "tokens", "largest batch", "largest difference" if tolerance else "different", ""),
        [
            (
                found.sessions,
                found.beside,
                found.tokens,
                found.largest,
                f"{found.largest_difference:.2g}" if tolerance else found.different,
                _verdict(found.passed),
            )
            for found in companies
        ],
    )
    click.echo()
    click.echo(f"BLAS on one thread in steps, whichever thread makes them: {_verdict(machine['blas_threads_in_steps'] <= 1)}")
    if step is not None:
        click.echo(f"A whole step of random weights, at every place and beside NaN: {_verdict(step)}")
    click.echo(_verdict(passed))


def _exact(exact: bool) -> str:
    return "exact" if exact else "not exact"


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"
