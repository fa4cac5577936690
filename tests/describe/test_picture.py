import itertools

import pytest

from polopt import PoloptError, algorithms, chain
from polopt.describe import picture
from polopt.describe.facts import facts, method_map
from polopt.describe.picture import draw_map
from polopt.describe.places import COLUMNS, ROWS, place
from polopt.lift import reward_piece


def at(alg):
    row, column = place(facts(alg))
    return ROWS[row].title, COLUMNS[column].title


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("reinforce", ("score function", "plain return")),
        ("rloo", ("score function", "baseline")),
        ("a2c", ("terms beside it", "critic")),
        ("ppo", ("clip", "critic")),
        ("grpo", ("clip", "scale")),
        ("dr_grpo", ("clip", "baseline")),
        ("gspo", ("ratios", "scale")),
        ("cispo", ("weights and gates", "scale")),
        ("kl_cov", ("masks", "scale")),
        ("entropy_top_quantile", ("masks", "scale")),
    ],
)
def test_a_method_stands_where_its_farthest_piece_does(key, where):
    assert at(getattr(algorithms, key)()) == where


def test_no_shipped_method_is_among_the_others():
    assert not [key for key, entry in method_map().items() if "others" in at_entry(entry)]


def at_entry(entry):
    row, column = place(entry)
    return ROWS[row].title, COLUMNS[column].title


def test_a_piece_from_elsewhere_is_among_the_others():
    @reward_piece
    def odd(sequence, group):
        """Nothing."""
        return sequence

    plain = algorithms.reinforce()
    assert at(plain.replace(reward=chain(plain.reward, odd())))[1] == "others"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The file, and the labels and pills that were drawn, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures = []
    saved = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        saved(figure, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        out = draw_map(tmp_path_factory.mktemp("map") / "deep" / "map.png")
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    (axes,) = figures[0].axes
    texts = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts]
    return out, texts, [pill.get_window_extent(renderer) for pill in axes.patches]


def test_the_picture_is_a_slide(drawn):
    from matplotlib.image import imread

    assert imread(drawn[0]).shape[:2] == (1080, 1920)


def test_every_method_is_on_it_once_and_nothing_overlaps(drawn):
    _, texts, _ = drawn
    names = [name for name, _ in texts]
    keys = sorted(algorithms.__all__)
    assert sorted(name for name in names if name in keys) == keys
    slack = [(name, box.shrunk(0.98, 0.9)) for name, box in texts]
    for (a, first), (b, second) in itertools.combinations(slack, 2):
        assert not first.overlaps(second), f"{a} and {b}"
    for name, box in texts:
        assert min(box.x0, box.y0, 1920 - box.x1, 1080 - box.y1) >= 0, name


def test_a_label_lies_inside_its_pill(drawn):
    _, texts, pills = drawn
    for name, box in texts:
        if name in algorithms.__all__:
            assert any(
                pill.x0 < box.x0 and box.x1 < pill.x1 and pill.contains(*_middle(box))
                for pill in pills
            ), name


def _middle(box):
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(PoloptError, match=r"map\.jpg: the map is drawn as \.png, \.svg or \.pdf"):
        draw_map(tmp_path / "map.jpg")
    assert len(picture._HUES) >= len(picture.FAMILIES)
