"""The energy meter, against counters in a folder laid out as the kernel's."""

from pathlib import Path

from raylab.training.energy import Meter


def package(folder: Path, number: int, microjoules: int) -> None:
    home = folder / f"intel-rapl:{number}"
    home.mkdir(parents=True, exist_ok=True)
    (home / "energy_uj").write_text(f"{microjoules}\n")
    (home / "max_energy_range_uj").write_text("10000000\n")
    (folder / f"intel-rapl:{number}:0").mkdir(exist_ok=True)  # a part of it, counted already
    (folder / f"intel-rapl:{number}:0" / "energy_uj").write_text("77\n")


def test_joules_of_all_packages_since_it_was_asked(tmp_path):
    package(tmp_path, 0, 1_000_000)
    package(tmp_path, 1, 5_000_000)
    meter = Meter(None, tmp_path)
    package(tmp_path, 0, 4_000_000)
    package(tmp_path, 1, 5_500_000)
    assert meter.joules() == 3.5
    assert meter.joules() == 0.0


def test_a_counter_that_began_again(tmp_path):
    package(tmp_path, 0, 9_000_000)
    meter = Meter(None, tmp_path)
    package(tmp_path, 0, 2_000_000)
    assert meter.joules() == 3.0


def test_nothing_is_told_where_nothing_can_be_read(tmp_path):
    assert Meter(None, tmp_path / "none").joules() is None
    package(tmp_path, 0, 1)
    meter = Meter(None, tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number")
    assert meter.joules() is None
