"""The report of a comparison: its files, and its page in a real browser without a network."""

from __future__ import annotations

import csv
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from carcodec import app
from carcodec.compare import Comparison

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def folder(taipei: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report made by the command line, of two real pictures."""
    made = tmp_path_factory.mktemp("compared")
    taipei.crop((260, 300, 452, 460)).save(made / "streets & lamps.png")
    taipei.crop((100, 340, 340, 580)).save(made / "hill.png")
    arguments = ["compare", str(made), "--models", "tiny-x2", "--storages", "avif,webp"]
    arguments += ["--against", "jpeg,jpeg2000", "--metric", "psnr,ms-ssim", "--rates", "0.2:3"]
    arguments += ["--view", "0.5,1", "-o", str(made / "report"), "--cache", str(made / "cache")]
    result = CliRunner().invoke(app.app, arguments)
    assert result.exit_code == 0, result.output
    return made / "report"


def test_report_holds_data_and_plots(folder: Path) -> None:
    found = Comparison.from_json((folder / "report.json").read_text())
    assert [p.name for p in found.pictures] == ["hill", "streets & lamps"]
    with (folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.points)
    assert float(rows[0]["psnr"]) == found.points[0].metrics["psnr"]
    for metric in ("psnr", "ms-ssim"):
        with Image.open(folder / f"{metric}.png") as plot:
            assert min(plot.size) > 400
        text = (folder / f"{metric}.svg").read_text()
        ElementTree.fromstring(text)
        assert "JPEG 2000" in text and "bits per pixel" in text


def test_page_is_one_file_that_names_no_other(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "@@" not in page
    for part in page.split("<script>"):
        assert 'src="http' not in part and "url(http" not in part
    assert '<link rel="stylesheet"' not in page and page.count("</html>") == 1


def test_same_bytes_in_the_viewer(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    start = page.index('id="data">') + len('id="data">')
    views = json.loads(page[start : page.index("</script>", start)])["views"]
    assert [(v["picture"], v["rate"]) for v in views][:2] == [("hill", 0.5), ("hill", 1.0)]
    for view in views:
        shown = {entry["name"]: entry for entry in view["shown"]}
        assert set(shown) == {"original", "carcodec", "thumbnail", "jpeg", "jpeg2000"}
        budget = shown["carcodec"]["bytes"]
        for name in ("jpeg", "jpeg2000"):
            # one step of JPEG's quality is several per cent of so small a file
            assert budget <= shown[name]["bytes"] < 1.12 * budget


def test_a_second_report_takes_its_pictures_from_the_cache(folder: Path) -> None:
    kept = sorted((folder.parent / "cache").rglob("view-*.json"))
    assert len(kept) == 4  # two pictures at two rates
    marked = json.loads(kept[0].read_text())
    marked["shown"][0]["title"] = "marked"
    kept[0].write_text(json.dumps(marked))
    kept[1].write_text("damaged")
    arguments = ["compare", *map(str, sorted(folder.parent.glob("*.png")))]
    arguments += ["--models", "tiny-x2", "--storages", "avif,webp", "--against", "jpeg,jpeg2000"]
    arguments += ["--metric", "psnr,ms-ssim", "--rates", "0.2:3", "--view", "0.5,1"]
    arguments += ["-o", str(folder.parent / "again"), "--cache", str(folder.parent / "cache")]
    assert CliRunner().invoke(app.app, arguments).exit_code == 0
    page = (folder.parent / "again" / "index.html").read_text()
    assert page.count('"title": "marked"') == 1
    assert json.loads(kept[1].read_text())["shown"]


def test_a_comparison_that_was_kept_reports_without_its_viewer(
    folder: Path, tmp_path: Path
) -> None:
    kept = Comparison.from_json((folder / "report.json").read_text())
    page = kept.report(tmp_path).read_text()
    assert '"views": []' in page
    assert (tmp_path / "report.csv").read_bytes() == (folder / "report.csv").read_bytes()


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
    if not (BROWSER and DRIVER):
        pytest.skip("chromium and chromedriver are not on the PATH")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--window-size=390,844",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get((folder / "index.html").as_uri())
        yield driver
    finally:
        driver.quit()


def test_page_works_in_a_browser(browser: Any) -> None:
    def ask(script: str) -> Any:
        return browser.execute_script(f"return {script}")

    def choose(name: str, value: str) -> None:
        browser.execute_script(
            "const e = document.getElementById(arguments[0]);"
            "if (e.type === 'checkbox') e.checked = !e.checked; else e.value = arguments[1];"
            "e.dispatchEvent(new Event(e.type === 'range' ? 'input' : 'change'));",
            name, value,
        )  # fmt: skip

    assert ask("document.body.dataset.ready") == "yes"
    # as wide as a telephone: nothing sticks out
    assert ask("document.documentElement.scrollWidth <= innerWidth")
    assert "than JPEG" in ask("document.getElementById('summary').textContent")

    def drawn() -> list[str]:
        return ask("[...document.querySelectorAll('.u-legend .u-series')].map(e => e.innerText)")

    usual = drawn()
    assert any("carcodec" in name for name in usual)
    choose("branches", "")
    assert len(drawn()) > len(usual)
    browser.execute_script("document.querySelectorAll('.u-legend .u-series th')[1].click()")
    assert ask("document.querySelectorAll('.u-legend .u-series')[1].classList.contains('u-off')")
    before = ask("document.querySelector('#chart canvas').toDataURL()")
    choose("metric", "ms-ssim")
    assert ask("document.querySelector('#chart canvas').toDataURL()") != before
    assert ask("document.querySelectorAll('#rows tbody tr').length") == 2

    browser.execute_script("document.querySelectorAll('#rows tbody tr')[1].click()")
    assert "streets & lamps" in ask(
        "document.getElementById('view').selectedOptions[0].textContent"
    )
    # MS-SSIM has no value for a picture this small
    assert "too small" in ask("document.getElementById('chart').textContent")
    choose("metric", "psnr")
    assert ask("document.querySelectorAll('#chart canvas').length") == 1
    choose("left", "carcodec")
    choose("right", "jpeg")
    browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "Promise.all(['left-image', 'right-image'].map(i => document.getElementById(i).decode()))"
        ".then(() => done())"
    )
    assert ask("document.getElementById('left-image').naturalWidth") == 192
    assert ask("document.getElementById('right-image').naturalWidth") == 192
    assert "bytes" in ask("document.getElementById('left-caption').textContent")
    choose("slider", "20")
    clip = "getComputedStyle(document.getElementById('left-image')).clipPath"
    assert "80%" in ask(clip)
    choose("difference", "")
    assert ask(clip) == "none"
    choose("zoom", "4")
    assert ask("document.getElementById('pair').clientWidth") == 4 * 192

    assert ask("performance.getEntriesByType('resource').every(e => e.name.startsWith('data:'))")
    assert browser.get_log("browser") == []
