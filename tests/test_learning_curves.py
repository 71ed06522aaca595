"""The learning curves: what is one line, its band, its label, colour and style."""

import re

import numpy as np

from gallery import example


def made_up_runs(report, losses, name="net", rate=0.1):
    return [report.Run(name, rate, [0.5, 0.9], list(loss), [3.0, 1.0]) for loss in losses]


def test_band_is_from_the_lowest_to_the_highest_seed():
    runs = made_up_runs(example("report"), [(1.0, 0.1), (4.0, 0.1), (2.5, 0.4)])
    loss = example("learning_curves").figure(runs).axes[1]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), (2.5, 0.2))
    outline = loss.collections[0].get_paths()[0].vertices
    for epoch, low, high in ((1, 1.0, 4.0), (2, 0.1, 0.4)):
        values = outline[outline[:, 0] == epoch, 1]
        np.testing.assert_allclose([values.min(), values.max()], [low, high])


def test_table_has_the_spread_of_the_seeds():
    runs = made_up_runs(example("report"), [(1.0, 0.1)] * 2)
    runs[1] = runs[1]._replace(test_accuracy=[0.5, 0.7])
    assert re.search(r"net +80.0% ± 14.1 +2 +1.00$", example("learning_curves").table(runs))


def test_one_seed_has_no_spread():
    runs = made_up_runs(example("report"), [(1.0, 0.5)])
    curves = example("learning_curves")
    assert re.search(r"net +90.0% +1 +1.00$", curves.table(runs))
    figure = curves.figure(runs)
    assert figure.legends[0].get_title().get_text() == "one seed"
    assert not figure.axes[0].collections


def test_learning_rate_is_named_where_there_are_several():
    report, curves = example("report"), example("learning_curves")
    runs = [run for rate in (0.1, 1.0) for run in made_up_runs(report, [(1.0, 0.5)], rate=rate)]
    assert list(curves.repeated(runs)) == ["net, learning rate 0.1", "net, learning rate 1"]
    assert list(curves.repeated(runs[:1])) == ["net"]


def test_colour_by_name_and_style_by_rate():
    report, curves = example("report"), example("learning_curves")
    settings = [("a", 0.1), ("b", 0.1), ("a", 1.0), ("b", 1.0)]
    runs = [made_up_runs(report, [(1.0, 0.5)], *setting)[0] for setting in settings]
    looks = [(v.get_color(), v.get_linestyle()) for v in curves.figure(runs).axes[0].lines]
    assert len(set(looks)) == 4
    assert looks[0][0] == looks[2][0] != looks[1][0] == looks[3][0]
    assert looks[0][1] == looks[1][1] != looks[2][1] == looks[3][1]
