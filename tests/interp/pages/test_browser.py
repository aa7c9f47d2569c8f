"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

import csv
import json
import os
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import interp
from interp.maps.grid import one_map
from interp.pages import path_graph
from interp.pages.contents import named
from interp.pages.page import contents, script, style
from interp.vocabulary import EDGE_PATHS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"
)
HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(shown, tmp_path_factory):
    """One answer, two of them, and one whose texts would like to be markup."""
    folder = tmp_path_factory.mktemp("pages")
    sample = replace(shown.explained.sample, question=HOSTILE, thinking=HOSTILE)
    datasets = {name: one.copy() for name, one in shown.datasets.items()}
    tokens = datasets["ledger"]["target_token"].values.astype(object)
    tokens[3] = HOSTILE
    datasets["ledger"]["target_token"] = ("target", tokens)
    hostile = replace(shown.answer, datasets=datasets, sample=sample, name=HOSTILE)
    text = interp.explain(shown.explained.vlm, None, "how many?", completion="3")
    small = interp.explain(
        shown.explained.vlm, Image.new("RGB", (84, 112), "red"), "which digit is red?"
    )
    shallow = {name: one for name, one in shown.datasets.items() if name != "maps"}
    shallow["heads"] = shallow["heads"].isel(layer=slice(2), head=slice(3))
    top = {name: shallow["heads"][name].clip(max=1) for name in ("top_layer", "top_head")}
    shallow["heads"] = shallow["heads"].assign(top)
    return {
        "text": interp.page([shown.answer, text], folder / "text.html"),
        "sizes": interp.page([shown.answer, small], folder / "sizes.html"),
        "models": interp.page(
            [shown.answer, replace(shown.answer, datasets=shallow)], folder / "models.html"
        ),
        "one": interp.page(shown.answer, folder / "one.html"),
        "two": interp.page([shown.answer, shown.answer], folder / "two.html", names=["a", "b"]),
        "hostile": interp.page(hostile, folder / "hostile.html"),
    }


@pytest.fixture
def opened(browser, files):
    """A function from a file's name to a page that is ready; at the end nothing has gone wrong."""
    wrong, pages = [], []

    def open_page(name: str, width: int = 1200, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on(
            "request",
            lambda one: (
                None if one.url.startswith(("file:", "data:", "blob:")) else wrong.append(one.url)
            ),
        )
        page.goto(files[name].as_uri())
        page.wait_for_selector("[data-ready]")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


def after(page, act) -> None:
    """Does something and waits until everything is drawn anew."""
    before = page.get_attribute("main", "data-ready")
    act()
    page.wait_for_selector(f'main:not([data-ready="{before}"])')


def numbers(page, section: str) -> dict[str, float]:
    """Label and number of every bar of a section."""
    rows = page.locator(f"details.{section} table.bars:not(.layers) tr")
    return dict(
        rows.evaluate_all(
            "rows => rows.map(r => [r.cells[0].textContent, "
            "Number(r.querySelector('.number').dataset.value)])"
        )
    )


@pytest.mark.parametrize("width", [1200, 420])
@pytest.mark.parametrize("name", ["one", "two"])
def test_it_fits_and_shows_everything(opened, width, name):
    page = opened(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    n_answers = {"one": 1, "two": 2}[name]
    assert page.locator(".picture img").count() == n_answers
    for section in ("likely", "words", "effects", "ledger", "heads", "sources", "graph"):
        assert page.locator(f"details.{section}[open]").count() == n_answers, section
    assert page.locator(".picture .box").count() == n_answers


def test_the_numbers_of_every_token_are_the_datasets(opened, shown):
    page = opened("one")
    datasets = shown.datasets
    ledger, effects, maps = datasets["ledger"], datasets["effects"], datasets["maps"]
    for k in range(ledger.sizes["target"]):
        after(page, lambda k=k: page.click(f'[data-target="{k}"]'))
        found = numbers(page, "ledger")
        assert found["logit"] == pytest.approx(float(ledger["logit"][k]), abs=1e-5)
        parts = sum(value for name, value in found.items() if name != "logit")
        assert parts == pytest.approx(found["logit"], abs=1e-4)
        found = numbers(page, "effects")
        own = effects.sel(source_set="image").isel(target=k)
        assert found["in all"] == pytest.approx(float(own["total"]), abs=1e-5)
        assert list(found.values())[:5] == pytest.approx(
            own["effect"].sel(path=list(EDGE_PATHS)).values.tolist(), abs=1e-5
        )
        shown_sum = float(page.locator(".look p .number").first.get_attribute("data-value"))
        expected = float(one_map(maps, k, "direct").sum())
        assert shown_sum == pytest.approx(expected, abs=1e-4)
        likely = np.exp(datasets["alternatives"]["likely_log_probability"][k].values)
        assert list(numbers(page, "likely").values()) == pytest.approx(likely.tolist(), abs=1e-6)
    words = datasets["words"].sel(drawn="greedy", norm="live", gauge="contrast")
    found = list(numbers(page, "words").values())
    assert found[:4] == pytest.approx(words["words_owen"].values.tolist(), abs=1e-5)


def test_colours_of_the_text_are_what_the_menu_says(opened, shown):
    page = opened("one")
    effects, ledger = shown.datasets["effects"], shown.datasets["ledger"]
    menu = page.get_by_label("Colour the text by")
    expected = {
        "total evidence": effects["total"].sel(source_set="evidence"),
        "ffn": ledger["ffn"].sum("layer"),
        "logit": ledger["logit"],
        "probability": np.exp(ledger["log_probability"]),
    }
    for name, values in expected.items():
        after(page, lambda name=name: menu.select_option(name))
        found = page.locator(".token").evaluate_all("all => all.map(t => Number(t.dataset.value))")
        np.testing.assert_allclose(found, values, atol=1e-4)


def test_a_patch_tells_which_tokens_it_moves(opened, shown):
    page = opened("one")
    after(page, lambda: page.get_by_label("Map", exact=True).select_option("pixels"))
    frame = page.locator(".picture").bounding_box()
    point = {"x": frame["width"] / 10, "y": frame["height"] / 10}
    after(page, lambda: page.locator(".picture").click(position=point))
    found = page.locator(".token").evaluate_all("all => all.map(t => Number(t.dataset.value))")
    pixels = shown.datasets["pixels"]["total"].sel(intervention="pixels")
    first = pixels[:, np.flatnonzero(pixels["image"] >= 0)[0]]
    assert int(first["row"]) == int(first["column"]) == 0
    np.testing.assert_allclose(found, first, atol=float(np.abs(pixels).max()) / 127)
    assert "row 0, column 0" in page.locator(".look").inner_text()
    after(page, lambda: page.click(".unpatch"))
    assert "the patch at" not in page.locator(".look").inner_text()


def test_a_head_shows_its_map_and_its_attention(opened, shown):
    page = opened("one")
    heads = shown.datasets["heads"].isel(target=shown.answer.chosen[0])
    layer, head = int(heads["top_layer"][0]), int(heads["top_head"][0])
    button = page.get_by_label(f"layer {layer}, head {head}:")
    assert float(button.get_attribute("data-value")) == pytest.approx(
        float(heads["head_image"].sel(layer=layer, head=head)), abs=1e-5
    )
    before = looked(page)
    after(page, button.click)
    rows = page.locator("details.heads table.plain tbody tr")
    top = heads["top_attention"].isel(rank=0)
    largest = float(rows.first.locator(".number").first.get_attribute("data-value"))
    assert largest == pytest.approx(float(top.max()), abs=float(top.max()) / 100)
    writes = looked(page)
    after(
        page,
        lambda: page.get_by_label(f"layer {layer}, head {head}", exact=True).select_option(
            "attention"
        ),
    )
    looks = looked(page)
    assert len({before, writes, looks}) == 3
    after(page, lambda: page.click(".unhead"))
    assert looked(page) == before


def test_every_choice_of_every_menu_changes_the_page(opened):
    """But for one that has no effect on this token, which the page says."""
    page = opened("one")
    n_menus = page.locator("select").count()
    assert n_menus == 7
    for number in range(n_menus):
        menu = page.locator("select").nth(number)
        chosen = menu.input_value()
        values = menu.locator("option").evaluate_all("all => all.map(o => o.value)")
        seen = {chosen: page.content() + pictures(page)}
        for value in values:
            if value != chosen:
                after(page, lambda m=menu, v=value: m.select_option(v))
                seen[value] = page.content() + pictures(page)
        assert len(set(seen.values())) == len(values) > 1, seen.keys()
        after(page, lambda m=menu, v=chosen: m.select_option(v))
    after(page, lambda: page.click('[data-target="0"]'))  # not the one with the largest value
    for label in ("one scale for all tokens", "picture in colour"):
        before = looked(page)
        after(page, page.get_by_label(label).check)
        assert looked(page) != before, label
    background = "getComputedStyle(document.querySelector('main')).backgroundColor"
    light = page.evaluate(background)
    after(page, page.get_by_role("button", name="Dark").click)
    assert page.evaluate(background) != light
    page.locator("details.facts summary").click()
    page.locator("details.facts table").wait_for()
    assert "model_hash" in page.locator("details.facts").inner_text()


def looked(page) -> str:
    return page.locator(".look").inner_html() + pictures(page)


def pictures(page) -> str:
    return "".join(page.locator("canvas").evaluate_all("all => all.map(c => c.toDataURL())"))


def test_the_keyboard_reaches_tokens_patches_heads_and_arrows(opened):
    page = opened("one")
    page.locator('.token[aria-pressed="true"]').focus()
    after(page, lambda: page.keyboard.press("ArrowLeft"))
    focused = page.evaluate("document.activeElement.dataset.target")
    assert focused == page.get_attribute('.token[aria-pressed="true"]', "data-target")
    page.locator(".picture").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert "row 1, column 1" in page.locator(".tell").inner_text()
    after(page, lambda: page.keyboard.press("Enter"))
    assert "the patch at row 1, column 1" in page.locator(".look").inner_text()
    page.locator('.head[tabindex="0"]').focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    after(page, lambda: page.keyboard.press("Enter"))
    assert "layer 1, head 1" in page.locator("details.heads").inner_text()
    node = page.locator('.arcs [role="button"]').first
    label = node.get_attribute("aria-label")
    node.focus()
    after(page, lambda: page.keyboard.press("Enter"))
    pressed = page.locator('.token[aria-pressed="true"]').inner_text()
    assert (
        label == f"arrows into {pressed}" or label.removeprefix("arrows into ").strip() == pressed
    )


def test_two_answers_about_one_text_go_together(opened):
    page = opened("two")
    after(page, lambda: page.locator(".run").first.locator('[data-target="2"]').click())
    pressed = page.locator('.token[aria-pressed="true"]')
    assert pressed.evaluate_all("all => all.map(t => t.dataset.target)") == ["2", "2"]
    assert [one.inner_text() for one in page.locator("h2").all()] == [
        "a the model's own text",
        "b the model's own text",
    ]


def test_an_image_beside_text_alone(opened):
    page = opened("text")
    assert page.locator(".picture").count() == 1
    assert "Text alone" in page.locator(".run").last.inner_text()
    assert page.locator("details.heads").last.locator("select").count() == 0


def test_a_patch_of_one_image_is_none_of_another(opened):
    """Their grids differ: the same number would be another place."""
    page = opened("sizes")
    first, second = page.locator(".run").all()
    after(page, lambda: first.locator(".picture").click())
    assert "the patch at" in first.inner_text() and "the patch at" not in second.inner_text()
    assert second.locator(".mark:visible").count() == 0


def test_a_head_and_a_map_that_the_other_answer_lacks(opened):
    page = opened("models")
    first, second = page.locator(".run").all()
    after(page, lambda: page.get_by_label("Map", exact=True).select_option("effect"))
    assert "This answer has no such map." in second.inner_text()
    limits = page.locator(".scale").evaluate_all("all => all.map(one => one.textContent)")
    assert "logit" in limits[0] and "logit" not in limits[1]
    after(page, lambda: first.get_by_label("layer 3, head 3:").click())
    assert "This model has no head 3 in a layer 3." in second.inner_text()
    after(page, page.locator('[data-target="1"]').first.click)


def test_pruning_is_the_graphs_own(opened, shown):
    """As `PathGraph.pruned` does it, by token and kind of intervention."""
    page = opened("one")
    names = ("edges", "node_effects", "words")
    graph = path_graph(*(shown.datasets[name] for name in names))
    node = str(int(shown.datasets["edges"]["target_position"][shown.answer.chosen[0]]) + 1)
    for share in (0.5, 0.8, 0.99):
        menu = page.get_by_label("Arrows that make up")
        after(page, lambda menu=menu, share=share: menu.select_option(str(share)))
        kept = graph.pruned(share)
        row = graph.left_out(kept).loc[node]
        text = page.locator("details.graph .left-out")
        assert text.inner_text().startswith(f"{int(row['n'])} left out")
        assert float(text.get_attribute("data-value")) == pytest.approx(row["absolute"], abs=1e-4)
        of_node = kept.arrows[kept.arrows["target"] == node]
        own = of_node[~of_node["path"].isin(["other positions", "words"])]
        bars = numbers(page, "graph")
        sums = own.groupby("source")["logit"].sum()
        for source, value in sums.items():
            label = graph.nodes.loc[source, "text"].strip()
            found = {name.strip(): one for name, one in bars.items()}
            assert found[label] == pytest.approx(value, abs=1e-4)
        assert len(bars) == len(sums) + len(of_node) - len(own)


def test_escape_home_and_end(opened):
    page = opened("one")
    page.locator('.token[aria-pressed="true"]').focus()
    for key, expected in (("Home", "0"), ("End", "9")):
        after(page, lambda key=key: page.keyboard.press(key))
        assert page.get_attribute('.token[aria-pressed="true"]', "data-target") == expected
        assert page.evaluate("document.activeElement.dataset.target") == expected
    page.locator(".picture").focus()
    after(page, lambda: page.keyboard.press("Enter"))
    assert "row 0, column 0" in page.locator(".tell").inner_text()
    after(page, lambda: page.keyboard.press("Escape"))
    assert "the patch at" not in page.locator(".look").inner_text()
    node = page.locator('.arcs [role="button"]').first
    node.focus()
    after(page, lambda: page.keyboard.press("Enter"))
    assert page.evaluate("document.activeElement.getAttribute('role')") == "button"


def test_the_graphs_table_is_the_graph(opened, shown, tmp_path):
    page = opened("one")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as a table").click()
    download.value.save_as(tmp_path / "paths.csv")
    rows = list(csv.DictReader((tmp_path / "paths.csv").open()))
    edges = shown.datasets["edges"]
    places = [str(one) for one in edges["target_position"].values + 1]
    own = [one for one in rows if (one["source"], one["target"]) == ("question", places[-1])]
    expected = edges["effect"].isel(target=-1).sel(source_set="question")
    assert len(own) == 1
    for path in EDGE_PATHS:
        assert float(own[0][path]) == pytest.approx(float(expected.sel(path=path)), abs=1e-5)


CLICKS = """async (choices) => {
  const wanted = "button, summary, select, input, .picture, .node[role=button]";
  for (const [place, value] of choices) {
    const all = [...document.querySelectorAll(wanted)].filter((one) => one.checkVisibility());
    const one = all[Math.floor(place * all.length)];
    if (one.tagName === "SELECT") {
      one.selectedIndex = Math.floor(value * one.options.length);
      one.dispatchEvent(new Event("change"));
    } else {
      const { left, top, width, height } = one.getBoundingClientRect();
      const point = { clientX: left + value * width, clientY: top + value * height };
      one.dispatchEvent(new MouseEvent("click", { ...point, bubbles: true }));
    }
    await new Promise((done) => setTimeout(done, 20 * value));
  }
}"""


def test_random_clicks(opened):
    """Fifty here; in `make soak` two hundred, four times."""
    n_clicks, seeds = (200, range(4)) if os.environ.get("SOAK") else (50, [0])
    for seed in seeds:
        page, rng = opened("two"), random.Random(seed)
        # Some come before what the last one asked for is drawn.
        page.evaluate(CLICKS, [[rng.random(), rng.random()] for _ in range(n_clicks)])
        after(page, page.locator(".run").first.locator('[data-target="1"]').click)
        pressed = page.locator(".token[aria-pressed=true]")
        assert pressed.evaluate_all("all => all.map(t => t.dataset.target)") == ["1", "1"]


@pytest.mark.parametrize("width", [1200, 420])
def test_hostile_texts_are_inert(opened, width):
    page = opened("hostile", width)
    assert page.title() == HOSTILE
    assert page.locator('img[src="x"]').count() == 0
    after(page, lambda: page.click('[data-target="3"]'))
    assert page.title() == HOSTILE
    assert HOSTILE in page.locator(".text").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints_and_knows_a_dark_surrounding(opened):
    page = opened("one", color_scheme="dark")
    dark = "getComputedStyle(document.querySelector('main')).backgroundColor"
    assert page.evaluate(dark) == "rgb(22, 24, 28)"
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.locator(".picture").is_visible() and page.locator(".text").is_visible()
    assert len(page.pdf()) > 10_000


def test_a_notebooks_cell_shows_the_same_page(browser, shown):
    """anywidget calls `render` with a model of the traits and an element to fill."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    module = script().replace("export default", "const view =")
    page.set_content(f"<style>{style()}</style><div id=cell></div>")
    data = json.dumps(contents(shown.answer))
    page.add_script_tag(
        type="module",
        content=f"{module}\nconst model = {{ get: (name) => ({{ page: {data} }})[name] }};\n"
        "view.render({ model, el: document.getElementById('cell') });".replace("</", "<\\/"),
    )
    page.wait_for_selector("#cell [data-ready]")
    assert page.locator("#cell .token").count() == shown.datasets["ledger"].sizes["target"]
    assert "margin: 0px" not in page.evaluate("document.body.style.cssText")
    page.close()


def test_a_page_of_a_ledger_alone_opens(opened, files, shown, tmp_path):
    files["bare"] = interp.page(
        replace(shown.answer, datasets=named([shown.datasets["ledger"]])), tmp_path / "bare.html"
    )
    page = opened("bare")
    assert page.locator("details").count() == 3
    after(page, lambda: page.click('[data-target="0"]'))
