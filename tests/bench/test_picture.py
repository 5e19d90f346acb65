"""Pictures: a well-formed SVG whose bars share their panel's scale."""

from xml.etree import ElementTree as ET

from picture import Bar, Panel, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_share_their_panels_scale_and_names_are_escaped() -> None:
    bars = [Bar("ours <1>", 10, 8, 20, ours=True), Bar("a peer", 5, 4, 6)]
    root = ET.fromstring(draw("figures & more", [Panel("a panel, ms", bars)]))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts == ["figures & more", "a panel, ms", "ours <1>", "10", "a peer", "5"]
    ours, peer = [float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect") if "x" in rect.attrib]
    assert abs(ours - 2 * peer) < 0.2
    spread = next(root.iter(f"{SVG}line")).attrib
    assert float(spread["x2"]) <= float(root.attrib["width"])


def test_a_panel_of_nothing_but_zeros_is_drawn() -> None:
    root = ET.fromstring(draw("zeros", [Panel("none", [Bar("ours", 0, 0, 0)])]))
    assert len(list(root.iter(f"{SVG}line"))) == 1
