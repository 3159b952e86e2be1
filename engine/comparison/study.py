"""A study: the same networks compared at several deformations of what they are shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.files import without_nan

from .differences import Difference
from .matplotlib_plots import group_colours, plot_curves, plot_gains
from .report import report_parts, templates
from .result import Comparison
from .trend import describe_trend, explain_trend, gain_trend

METRIC = "AP"


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        comparisons: by deformation, in rising order; groups have the same names in all, and the same first one.
    """

    comparisons: dict[float, Comparison]

    @property
    def strongest(self) -> Comparison:
        """The comparison at the strongest deformation, which has all networks."""
        return self.comparisons[max(self.comparisons)]

    @property
    def gains(self) -> dict[str, dict[float, Difference]]:
        """How much more AP than the base each network has, by name and deformation."""
        return {
            name: {
                level: comparison.differences[name][METRIC]
                for level, comparison in self.comparisons.items()
                if name in comparison.differences
            }
            for name in self.strongest.differences
        }

    @property
    def sentences(self) -> list[str]:
        """What can be said of each network that was trained at several deformations, and why it is so."""
        base = self.strongest.base
        base_ap = {level: comparison.groups[base].mean(METRIC) for level, comparison in self.comparisons.items()}
        found = []
        for name, gains in self.gains.items():
            if len(gains) < 2:
                continue
            groups = [self.comparisons[level].groups[each] for level in gains for each in (base, name)]
            spread = max(group.spread(METRIC) for group in groups)
            parts = (
                describe_trend(name, base, gains, base_ap),
                explain_trend(gain_trend(gains), base, base_ap, spread),
            )
            found.append(" ".join(filter(None, parts)))
        return found

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        gains = {
            name: {f"{level:g}": found._asdict() for level, found in gains.items()}
            for name, gains in self.gains.items()
        }
        return {
            "sentences": self.sentences,
            "gains": without_nan(gains),
            "deformations": {f"{level:g}": comparison.as_json() for level, comparison in self.comparisons.items()},
        }


def render_study(study: Study, links: Mapping[str, str]) -> str:
    """Render a study as a whole HTML page: how gains change, then the comparison at the strongest deformation.

    Args:
        study: what to show.
        links: titles and addresses of other reports.
    """
    parts = report_parts(study.strongest)
    colours = group_colours([*study.strongest.groups])
    several = {name: gains for name, gains in study.gains.items() if len(gains) > 1}
    values = {
        name: [
            ([*levels], [100 * comparison.groups[name].values(METRIC)[seed] for comparison in levels.values()])
            for seed in range(min(len(comparison.groups[name].runs) for comparison in levels.values()))
        ]
        for name in (study.strongest.base, *several)
        for levels in [{at: found for at, found in study.comparisons.items() if name in found.groups}]
    }
    plots = [
        plot_curves(
            values, colours, name="study-ap", title="AP on the val split, x100", x_label="deformation of the shapes"
        ),
        plot_gains(
            several,
            colours,
            name="study-gain",
            title=f"AP more than {study.strongest.base}, x100, with 95 % intervals",
            x_label="deformation of the shapes",
        ),
    ]
    template = templates().get_template("study.html.j2")
    return template.render(parts, study=study, study_plots=plots, several=[*values], links=links)
