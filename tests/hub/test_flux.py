"""What was exported can be read back by Flux: the queries of docs/metrics.md, and answers as InfluxDB 2 specifies them.

The answers in data/flux are written by hand from the specification, not recorded: no InfluxDB 2 could be had here. So
this shows that the queries reach a server as they are and that influxdb-client reads such answers into the figures.
That a server understands the queries is not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from influxdb_client.client.flux_csv_parser import FluxQueryException
from influxdb_client.client.influxdb_client import InfluxDBClient

from sim.influx import Influx

DATA = Path(__file__).parent / "data" / "flux"
PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
QUERIES = re.findall(r"```flux\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def server() -> Iterator[Influx]:
    one = Influx()
    yield one
    one.close()


@pytest.fixture
def client(server: Influx) -> Iterator[InfluxDBClient]:
    with InfluxDBClient(server.url, "s3cret", org="acme") as one:
        yield one


def test_the_error_rate_of_each_version_is_read_back(server: Influx, client: InfluxDBClient) -> None:
    server.csv = (DATA / "error_rate.csv").read_bytes()
    (query,) = [one for one in QUERIES if "rate:" in one]
    rows = [record.values for table in client.query_api().query(query) for record in table.records]
    assert [(row["fleet"], row["version"], row["errors"], row["inferences"], row["rate"]) for row in rows] == [
        ("hall", "1.2.0", 3, 1500, 0.002), ("lab", "1.2.0", 0, 90071992547409, 0), ("lab", "1.3.0", 12, 48, 0.25),
    ]  # fmt: skip
    (asked,) = server.asked
    assert (asked.path, asked.query, asked.headers["Authorization"]) == (
        "/api/v2/query", {"org": "acme"}, "Token s3cret",
    )  # fmt: skip
    assert json.loads(asked.body)["query"] == query


def test_a_series_is_read_back_by_device_with_its_place_and_time(server: Influx, client: InfluxDBClient) -> None:
    server.csv = (DATA / "latency.csv").read_bytes()
    (query,) = [one for one in QUERIES if "latency_p95_ms" in one]
    tables = client.query_api().query(query)
    assert [(table.records[0]["device"], table.records[0]["site"]) for table in tables] == [
        ("pi-0", 'Köln, "Halle 3" = Süd'), ("pi-1", "Berlin"),
    ]  # fmt: skip
    assert [[record.get_value() for record in table.records] for table in tables] == [[2.155, 2.2628], [7.0]]
    first = tables[0].records[0]
    assert (first.get_measurement(), first.get_field()) == ("edgewright_window", "latency_p95_ms")
    assert first.get_time().isoformat() == "2026-11-21T13:00:00+00:00"


def test_no_rows_are_no_tables_and_an_error_is_raised(server: Influx, client: InfluxDBClient) -> None:
    server.csv = (DATA / "nothing.csv").read_bytes()
    assert client.query_api().query(QUERIES[0]) == []
    server.csv = (DATA / "error.csv").read_bytes()
    with pytest.raises(FluxQueryException, match="cannot reach the bucket"):
        client.query_api().query(QUERIES[0])
