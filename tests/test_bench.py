"""The benchmark: what programs wrote is read right, ratios and words follow from it, and a short run is real."""

from __future__ import annotations

import doctest
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.bench import figures, goals, parse, plan, plots, report, words
from tproxy.bench.figures import KINDS, Point, Ratio, Results
from tproxy.bench.load import Busy, Load
from tproxy.bench.parse import Row
from tproxy.bench.progress import Progress
from tproxy.bench.run import half
from tproxy.world import apps
from tproxy.world.pods import World, wait_for

RECORDED = Path(__file__).parent / "golden" / "bench"
RPS = figures.rate(32)


def results(**pairs: list[dict[str, float]]) -> Results:
    """Rounds of some pairs, by their keys."""
    about = {"rounds": 2, "seconds": 1.0, "processors": 2, "kernel": "6.18", "openssl": "OpenSSL", "took": 60}
    return Results(rounds=pairs, about=about)


# what the programs wrote


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_wrk_is_read() -> None:
    found = parse.wrk(recorded("wrk.txt"))
    assert (found.count, found.errors, found.seconds) == (1234, 0, 0.301846)


def test_a_wrk_that_says_nothing_or_was_never_answered_is_an_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parse.wrk("unable to connect to 10.77.0.2:http Connection refused")
    with pytest.raises(ValueError, match="no answer at all"):
        parse.wrk('{"requests": 0, "microseconds": 416817, "errors": 0}')


def test_iperf3_is_read() -> None:
    found = parse.iperf3(recorded("iperf3.json"))
    assert found.count == 1000472576
    assert round(found.bits / 1e9, 3) == 7.936


def test_an_iperf3_that_failed_says_why() -> None:
    with pytest.raises(ValueError, match="Connection refused"):
        parse.iperf3(recorded("iperf3-refused.json"))


def test_h2load_is_read_in_the_order_of_sending() -> None:
    rows = parse.h2load(recorded("h2load.log"))
    assert len(rows) == 20
    assert rows[0] == Row(1795242899532017, 200, 256)
    assert [row.start for row in rows] == sorted(row.start for row in rows)
    found = parse.closed(rows)
    assert (found.count, found.errors) == (20, 0)
    assert found.percentiles == {"50": 0.256, "99": 6.143, "99.9": 6.143}


def test_a_log_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(ValueError, match="h2load's log"):
        parse.h2load("1795242899532017\t200\t256\n1795242")


def test_requests_that_failed_count_as_failed_and_have_no_latency() -> None:
    found = parse.closed([Row(0, 200, 1000), Row(5, 0, 9), Row(10, -1, 5), Row(20, 500, 7)])
    assert (found.count, found.errors, found.percentiles["99"]) == (3, 2, 1.0)


def test_answers_are_counted_by_when_they_were_complete() -> None:
    rows = [Row(1_000_000, 200, 100), Row(1_999_950, 200, 100), Row(2_500_000, 200, 100)]
    assert parse.finished(rows, 1.0, 2.0) == 1
    assert parse.finished(rows, 2.0, 3.0) == 2


# a load that never waits


def test_a_slow_answer_counts_for_the_requests_behind_it() -> None:
    assert sorted(parse.waited([1, 35, 10], 10)) == [1, 5, 10, 15, 25, 35]


@given(st.lists(st.floats(0.001, 1000), min_size=1), st.floats(1, 100))
def test_waiting_only_adds_and_never_more_than_the_slowest(latencies: list[float], interval: float) -> None:
    found = parse.waited(latencies, interval)
    assert found[: len(latencies)] == latencies
    assert max(found) == max(latencies)
    assert all(value > 0 for value in found)


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.floats(0, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(ordered: list[float], percent: float) -> None:
    value = parse.percentile(ordered, percent)
    assert sum(one <= value for one in ordered) * 100 >= percent * len(ordered) - 1e-6


@given(st.floats(50, 100_000), st.floats(0.1, 10))
def test_every_connection_gets_the_same_number_of_requests(rate: float, seconds: float) -> None:
    wanted = Load(rate, seconds)
    assert wanted.requests % wanted.connections == 0
    assert wanted.connections / wanted.interval == pytest.approx(rate)


def test_a_load_is_measured_by_when_it_was_sent() -> None:
    """A last answer that is late does not make it look smaller than it was; the first and last moments do not count."""
    rows = [Row(at * 10_000, 200, 500_000 if at == 150 else 1000) for at in range(200)]
    found = parse.offered(rows, 0.1, 0.5)
    assert found.count / found.seconds == pytest.approx(100, rel=0.01)
    assert found.percentiles["50"] == 1.0


def test_the_load_goes_on_while_the_server_stands_still(world: World) -> None:
    """More than one in a hundred requests find it so: that is what p99 must say, and none may be missing."""
    client, server = world.pod("load-client"), world.pod("load-server")
    process = apps.nginx(server, {"index.html": b"page"}, access_log=False)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    wanted, log, stop = Load(1000, 1.5), world.directory / "load.log", 0.3
    running = client.start(wanted.argv(server.v4, log))
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 400, 20, "requests under way", running)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in workers:
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            with pytest.raises(TimeoutError):
                running.wait(stop)
    assert running.wait(60) == 0
    rows = parse.h2load(log.read_text())
    assert len(rows) == wanted.requests
    found = parse.offered(rows, wanted.ramp, wanted.interval)
    assert found.percentiles["99"] > 0.5 * stop * 1000
    assert parse.closed(rows).percentiles["50"] < found.percentiles["99"]


def test_the_offered_load_is_half_of_what_envoy_carried_in_the_same_round() -> None:
    found = results(direct=[{RPS: 900.0}, {RPS: 800.0}], envoy=[{RPS: 300.0}, {RPS: 200.0}], mtls=[{RPS: 100.0}])
    assert half(found, 0) == 150
    assert half(found, 1) == 100
    assert half(results(direct=[{RPS: 900.0}], mtls=[{RPS: 100.0}]), 0) == 50
    assert half(found, 2) is None


def test_what_happens_before_all_connections_stand_does_not_count() -> None:
    argv = Busy(256, 1.5).argv("10.77.0.2", Path("/log"))
    assert "--warm-up-time=840ms" in argv
    assert argv[argv.index("-D") + 1] == "1500ms"


# the plan


def test_pairs_are_measured_one_after_the_other_and_the_first_changes() -> None:
    steps = list(plan.steps(2, 1, ["mtls", "envoy"], ["connections", "bulk"]))
    first = [(step.measure, step.size, step.pair) for step in steps if step.number == 0]
    assert first == [
        ("connections", 0, "mtls"),
        ("connections", 0, "envoy"),
        *(("bulk", size, pair) for size in (1, 8) for pair in ("mtls", "envoy")),
    ]
    assert [step.pair for step in steps if step.number == 1][:2] == ["envoy", "mtls"]


def test_every_pair_is_measured_by_what_it_is_for_only() -> None:
    for step in plan.steps(1, 1, list(KINDS), list(figures.MEASURES)):
        assert step.measure in KINDS[step.pair].measures


def test_names_of_pairs_and_measures_choose() -> None:
    assert plan.chosen([]) == (list(KINDS), list(figures.MEASURES))
    assert plan.chosen(["envoy", "bulk"]) == (["envoy"], ["bulk"])
    assert plan.chosen(["load"])[1] == ["requests", "load"]
    with pytest.raises(ValueError, match="called squid; pairs are direct"):
        plan.chosen(["envoy", "squid"])


def test_idle_connections_end_where_files_do() -> None:
    assert plan.idle_counts(10_000, 1 << 20) == [1, 10, 100, 1000, 10_000]
    assert plan.idle_counts(10_000, 20_000) == [1, 10, 100, 1000, 9750]
    assert plan.idle_counts(500, 20_000) == [1, 10, 100, 500]
    assert plan.idle_counts(10_000, 256) == [1]


def test_a_full_run_takes_less_than_25_minutes_and_a_quick_one_less_than_2() -> None:
    def planned(pairs: list[str], measures: list[str], rounds: int, seconds: float, idle: int) -> float:
        made = plan.BUILD * len(pairs) + len(plan.idle_pairs(pairs, measures)) * plan.idle_seconds(idle)
        return made + sum(step.seconds for step in plan.steps(rounds, seconds, pairs, measures))

    assert planned(*plan.chosen([]), 6, 1.5, 10_000) < 25 * 60 * 0.8
    assert planned(*plan.quick(*plan.chosen([])), 1, 0.3, 500) < 2 * 60 * 0.8


def test_progress_is_a_line_a_step_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(4, stream)
    progress.step("one", 1)
    progress.step("two", 3)
    progress.end()
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0].strip() for line in lines] == ["0 %", "25 %"]
    assert lines[0].endswith("0:04 left: one")


# ratios, goals, words


def test_a_ratio_is_taken_within_each_round() -> None:
    found = results(mtls=[{RPS: 10.0}, {RPS: 40.0}, {RPS: 9.0}], envoy=[{RPS: 10.0}, {RPS: 20.0}, {RPS: 6.0}])
    assert found.ratio("mtls", "envoy", RPS) == Ratio(1.5, 1.0, 2.0)
    assert str(found.ratio("mtls", "envoy", RPS)) == "1.50x (1.00-2.00)"


def test_a_round_in_which_one_failed_is_left_out() -> None:
    found = Results()
    found.add("mtls", 0, {RPS: 10.0})
    found.add("envoy", 1, {RPS: 20.0})
    assert found.ratio("mtls", "envoy", RPS) is None
    found.add("mtls", 1, {RPS: 30.0})
    assert found.ratio("mtls", "envoy", RPS) == Ratio(1.5, 1.5, 1.5)
    assert found.values("envoy", RPS) == [20.0]


@pytest.mark.parametrize(("least", "most", "ratio", "met"), [
    (1.3, None, 1.3, True),
    (1.3, None, 1.29, False),
    (None, 0.8, 0.8, True),
    (None, 0.8, 0.81, False),
])  # fmt: skip
def test_a_goal_is_met_by_the_median(least: float | None, most: float | None, ratio: float, met: bool) -> None:
    wish = goals.Wish("it", RPS, least, most)
    assert goals.judge(wish, Ratio(ratio, 0.1, 9.0)).met is met
    assert goals.judge(wish, None).met is None


def test_goals_are_about_the_pair_with_sockmap_if_there_is_one() -> None:
    envoy = [{RPS: 10.0}]
    assert goals.goals(results(mtls=[{RPS: 20.0}], envoy=envoy))[0].measured == "2.00x"
    assert goals.goals(results(mtls=[{RPS: 20.0}], sockmap=[{RPS: 30.0}], envoy=envoy))[0].measured == "3.00x"


def test_resumption_and_the_plain_hop_have_goals_of_their_own() -> None:
    bulk = figures.bulk(1)
    found = results(
        mtls=[{figures.NEW: 900.0}],
        resumption=[{figures.NEW: 1600.0}],
        envoy=[{figures.NEW: 1000.0}],
        hop=[{bulk: 9.0}],
        envoyhop=[{bulk: 10.0}],
    )
    measured = {goal.name: (goal.measured, goal.met) for goal in goals.goals(found) if goal.met is not None}
    assert measured == {
        "new mTLS connections/s, no resumption": ("0.90x", False),
        "new mTLS connections/s, with resumption (Envoy without)": ("1.60x", True),
        "plain passthrough, bulk, 1 stream": ("0.90x", False),
    }


def growth(side: int, kernel: int) -> list[Point]:
    """One more connection costs ``side`` bytes in the first sidecar, half of it in the second, ``kernel`` in Linux."""
    return [Point(n, (30_000_000 + side * n, 30_000_000 + side // 2 * n), kernel * n) for n in (1, 10, 1001)]


def test_the_sidecar_that_needs_more_for_an_idle_connection_counts() -> None:
    found = Results(idle={"mtls": growth(30 << 10, 0), "sockmap": growth(41 << 10, 0)})
    goal = goals.idle_goal(found)
    assert (goal.measured, goal.met) == ("41.0 KiB", False)


def test_the_kernels_memory_of_a_sidecar_is_what_there_is_more_than_without_any() -> None:
    direct = [Point(n, (), 8 * n) for n in (1, 101)]
    found = {"mtls": growth(1, 28), "direct": direct}
    assert figures.kernel_share(found, "mtls") == 10
    assert figures.kernel_share({"mtls": growth(1, 28)}, "mtls") is None


@pytest.mark.parametrize(("ratio", "more", "said"), [
    (Ratio(1.3, 1.2, 1.4), True, "1.30 times Envoy's, which is better"),
    (Ratio(1.3, 1.2, 1.4), False, "1.30 times Envoy's, which is worse"),
    (Ratio(0.7, 0.6, 1.1), True, "0.70 times Envoy's, which is worse, though not in every round"),
    (Ratio(1.04, 0.5, 2.0), True, "about Envoy's (1.04 times)"),
])  # fmt: skip
def test_a_ratio_is_said_in_words(ratio: Ratio, more: bool, said: str) -> None:
    assert words.compared(ratio, more, "Envoy's") == said


def test_the_text_speaks_of_what_was_measured_only() -> None:
    assert words.text(Results()) == []
    text = "\n".join(words.text(results(mtls=[{RPS: 20.0}], envoy=[{RPS: 10.0}])))
    assert "1 of 1 goals that were measured are met." in text
    assert "Requests a second over 32 connections: 20, 2.00 times Envoy's, which is better." in text
    assert "Bulk" not in text


def test_a_machine_that_was_busy_is_mentioned() -> None:
    found = results(mtls=[{RPS: 20.0}], envoy=[{RPS: 10.0}])
    found.about["load before"] = 1.7
    assert "The machine was not quiet before the run (load 1.7)" in words.text(found)[-1]


def test_a_sockmap_that_was_off_is_mentioned_and_not_praised() -> None:
    cost = {RPS: 20.0, figures.CPU_REQUESTS: 1.0}
    found = results(mtls=[cost], sockmap=[cost], envoy=[cost])
    assert "With sockmap it is 1.00 times that without." in words.text(found)[-1]
    found.notes.append("tproxy, mTLS + sockmap: sockmap is off: no capability")
    assert (
        "so the pair with sockmap has none (tproxy, mTLS + sockmap: sockmap is off: no capability)"
        in words.text(found)[0]
    )
    assert "With sockmap" not in "".join(words.text(found))


def test_the_table_has_a_column_of_ratios_and_says_what_is_worse() -> None:
    found = results(direct=[{RPS: 50_000.0}], mtls=[{RPS: 900.0}], envoy=[{RPS: 1000.0}])
    lines = report.markdown(found).splitlines()
    assert lines[0] == "|  | no proxy | tproxy, mTLS | Envoy | tproxy, mTLS against Envoy |"
    assert lines[2] == "| requests/s, 32 connections (1/s) | 50,000 | 900 | 1,000 | 0.90x, worse |"


def test_everything_is_in_the_report_and_every_raw_round_in_the_json(tmp_path: Path) -> None:
    one = {figure.name: 2.0 for figure in (*figures.FIGURES, *figures.CURVES)}
    found = results(**{key: [one, one] for key in KINDS})
    found.idle = {"direct": [Point(1, (), 0), Point(9, (), 8)], "sockmap": growth(1 << 10, 9), "envoy": []}
    found.notes.append("one thing")
    made = report.write(found, tmp_path) + plots.draw(found, tmp_path)
    assert {path.name for path in made} == {"bench.json", "bench.md", "bench.png", "growth.png"}
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["rounds"]["envoy"] == [one, one]
    assert document["summary"]["envoy"][RPS] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert len(document["goals"]) == 15
    text = (tmp_path / "bench.md").read_text()
    for title in (
        "resumption",
        "One plain hop",
        "active connections",
        "idle connections",
        "Goals",
        "In words",
        "Notes",
    ):
        assert any(line.startswith("###") and title in line for line in text.splitlines())


@pytest.mark.parametrize("module", [plan, words])
def test_the_examples_are_true(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]  # it is a module


# the real thing


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tproxy", "bench", *args]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)


def test_a_name_that_is_neither_pair_nor_measure_is_refused() -> None:
    done = bench("--only", "envoy,squid")
    assert done.returncode == 2
    assert "called squid; pairs are direct, plain, mtls" in done.stderr


@pytest.mark.usefixtures("world")  # needs root
def test_two_pairs_are_really_measured(tmp_path: Path) -> None:
    only = "direct,mtls,requests,load,connections,memory,bulk"
    done = bench("--only", only, "--rounds", "1", "--seconds", "0.3", "--out", str(tmp_path), "--json", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document["rounds"]) == ["direct", "mtls"]
    wanted = {figure.name for figure in figures.FIGURES}
    assert set(document["rounds"]["mtls"][0]) == wanted
    assert set(document["rounds"]["direct"][0]) == wanted - {figures.IDLE_MEMORY, figures.MEMORY}
    assert all(value > 0 for pair in document["rounds"].values() for value in pair[0].values())
    assert " left: round 1: load, tproxy, mTLS" in done.stderr
    assert (tmp_path / "bench.md").read_text().startswith("|  | no proxy | tproxy, mTLS |")
