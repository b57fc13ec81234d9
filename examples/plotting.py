"""The pictures of the examples. Nothing here knows of pstate: what comes in are NumPy arrays.

Colours are those of Okabe and Ito ("Color universal design", 2008), which people with colour vision
deficiencies can tell apart. Curves also differ in style, so that they can be told apart in print.
Titles say what was found, with numbers from the data.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"


def tidy(ax: Axes, title: str = "") -> None:
    """A grid, no box, and a title on the left."""
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title, fontsize=11, loc="left")


def save(figure: Figure, path: Path) -> None:
    """Write a figure into a folder, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# An ensemble on digits ------------------------------------------------------------------------------


def draw_digits(
    path: Path,
    losses: Float[np.ndarray, "steps members"],
    probabilities: Float[np.ndarray, "members images 10"],
    images: Float[np.ndarray, "images 64"],
    labels: Int[np.ndarray, " images"],
    window: int,
) -> None:
    """Training curves, averaged over a window; and the images on which the members disagree most."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1), wspace=0.03)[0]
    ballots = probabilities.argmax(axis=-1)
    said = probabilities.mean(axis=0).argmax(axis=-1)
    draw_losses(left, losses, min(window, len(losses)))
    draw_disputed(right, count_votes(ballots), said, images, labels)
    one, all_of_them = (ballots == labels).mean(), (said == labels).mean()
    figure.suptitle(
        f"{len(ballots)} networks trained together: on average one reads {one:.1%} of the test digits, "
        f"the ensemble {all_of_them:.1%}"
    )
    save(figure, path)


def draw_losses(figure: SubFigure, losses: Float[np.ndarray, "steps members"], window: int) -> None:
    """A thin curve for each member, and their mean."""
    curves = np.lib.stride_tricks.sliding_window_view(losses, window, axis=0).mean(axis=-1)
    ends = np.arange(window, len(losses) + 1)
    ax = figure.subplots()
    thin = ax.plot(ends, curves, color=BLUE, linewidth=0.7, alpha=0.6)
    thin[0].set_label("each member")
    ax.plot(ends, curves.mean(axis=1), color="black", linewidth=2.2, label="mean of the members")
    ax.set(xlabel="training step", ylabel=f"cross-entropy, mean of {window} steps", yscale="log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.legend(frameon=False)
    first, last = curves.mean(axis=1)[[0, -1]]
    tidy(ax, f"Training loss: from {first:.2f} to {last:.2f}")


def draw_disputed(
    figure: SubFigure,
    votes: Int[np.ndarray, "images 10"],
    said: Int[np.ndarray, " images"],
    images: Float[np.ndarray, "images 64"],
    labels: Int[np.ndarray, " images"],
) -> None:
    """The images with the most divided votes: what they are, what the ensemble says, and the votes."""
    shown = most_disputed(votes)[:9]
    for ax, i in zip(figure.subplots(3, 3, squeeze=False).flat, shown, strict=False):
        right = labels[i] == said[i]
        ax.imshow(images[i].reshape(8, 8), cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        ax.set_title(
            f"{labels[i]}, read as {said[i]}",
            fontsize=10,
            color="black" if right else ORANGE,
            weight="normal" if right else "bold",
        )
        ax.set_xlabel(in_words(votes[i]), fontsize=8.5)
    right = (labels == said)[shown].sum()
    figure.suptitle(
        f"The {len(shown)} most disputed digits: the ensemble gets {right} right", fontsize=11
    )


def count_votes(ballots: Int[np.ndarray, "members images"]) -> Int[np.ndarray, "images 10"]:
    """How many members say which digit."""
    return np.stack([(ballots == digit).sum(axis=0) for digit in range(10)], axis=-1)


def in_words(votes: Int[np.ndarray, " 10"]) -> str:
    """The two digits with the most votes, and how many members chose another one."""
    first, second = np.argsort(-votes, kind="stable")[:2]
    others = votes.sum() - votes[first] - votes[second]
    said = [f"{votes[digit]} say {digit}" for digit in (first, second) if votes[digit]]
    return ", ".join([*said, f"{others} other"] if others else said)


def most_disputed(votes: Int[np.ndarray, "images 10"]) -> Int[np.ndarray, " images"]:
    """The images in order of the entropy of their votes, from the most divided."""
    shares = votes / votes.sum(axis=1, keepdims=True)
    entropy = -np.sum(shares * np.log(np.where(votes, shares, 1)), axis=1)
    return np.argsort(-entropy, kind="stable")


# Spiking networks -----------------------------------------------------------------------------------


def draw_raster(
    path: Path,
    spikes: Bool[np.ndarray, "steps trials neurons"],
    step: float,
    excitatory: int,
    trials: int = 3,
    milliseconds: int = 400,
) -> None:
    """The first spikes of the first trials of one network, and the firing rate of all its neurons."""
    shown = min(trials, spikes.shape[1])
    figure = Figure(figsize=(10, 1.6 * shown + 2.2), layout="constrained")
    *rasters, activity = figure.subplots(shown + 1, 1, sharex=True, squeeze=False)[:, 0]
    first = spikes[: round(milliseconds / step)]
    for trial, ax in enumerate(rasters):
        draw_spikes(ax, first[:, trial], step, excitatory)
        ax.set_ylabel(f"trial {trial + 1}")
    draw_activity(activity, first, step)
    activity.set(xlabel="time (ms)", xlim=(0, len(first) * step))
    rates = spikes.mean(axis=(0, 2)) * 1e3 / step
    figure.suptitle(
        f"{len(rates)} trials of one network: {rates.mean():.1f} ± {rates.std():.1f} Hz, with spikes "
        f"at different times (correlation {correlation(spikes):z.2f})"
        if len(rates) > 1
        else f"A trial of a network: {rates.mean():.1f} Hz"
    )
    save(figure, path)


def draw_spikes(
    ax: Axes, spikes: Bool[np.ndarray, "steps neurons"], step: float, excitatory: int
) -> None:
    """A point for each spike, the inhibitory neurons on top."""
    time, neuron = np.nonzero(spikes)
    for chosen, color in ((neuron < excitatory, BLUE), (neuron >= excitatory, ORANGE)):
        ax.plot(time[chosen] * step, neuron[chosen], ".", color=color, markersize=3, markeredgewidth=0)
    neurons = spikes.shape[1]
    middles = [excitatory / 2, (excitatory + neurons) / 2]
    names = [f"{excitatory} excitatory", f"{neurons - excitatory} inhibitory"]
    ax.set(ylim=(-3, neurons + 3), yticks=middles, yticklabels=names)
    for label, color in zip(ax.get_yticklabels(), (BLUE, ORANGE), strict=True):
        label.set_color(color)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def correlation(spikes: Bool[np.ndarray, "steps trials neurons"]) -> float:
    """The correlation coefficient of the spikes of two trials, mean over pairs of different ones."""
    trials = spikes.shape[1]
    each = np.corrcoef(np.moveaxis(spikes, 1, 0).reshape(trials, -1))
    return float(each[~np.eye(trials, dtype=bool)].mean())


def draw_activity(
    ax: Axes, spikes: Bool[np.ndarray, "steps trials neurons"], step: float, window: float = 4.0
) -> None:
    """The firing rate of all neurons, in windows of so many ms: in the first trial, and in all."""
    steps = round(window / step)
    windows = len(spikes) // steps
    binned = spikes[: windows * steps].reshape(windows, steps, *spikes.shape[1:])
    rates = binned.mean(axis=(1, 3)) * 1e3 / step
    middles = (np.arange(windows) + 0.5) * window
    ax.plot(middles, rates[:, 0], color=GREY, linewidth=1, label="trial 1")
    ax.plot(middles, rates.mean(axis=1), color="black", linewidth=2, label=f"mean of {rates.shape[1]}")
    ax.margins(y=0.3)  # for the legend
    ax.set(ylabel="firing rate (Hz)", ylim=(0, None))
    ax.legend(frameon=False, ncols=2, loc="upper right")
    tidy(ax)


def draw_rates(
    path: Path,
    inhibition: Float[np.ndarray, " draws"],
    rates: Float[np.ndarray, "draws trials"],
    irregularity: Float[np.ndarray, "draws trials"],
) -> None:
    """Firing rate and irregularity against the strength of inhibition."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_against(left, inhibition, rates)
    draw_against(right, inhibition, irregularity)
    weakest, strongest = np.argmin(inhibition), np.argmax(inhibition)
    ends = lambda measured: measured.mean(axis=1)[[weakest, strongest]]
    tidy(left, "Firing rate: from {:.1f} to {:.1f} Hz".format(*ends(rates)))
    tidy(right, "Irregularity: from {:.2f} to {:.2f}".format(*ends(irregularity)))
    left.set(ylabel="firing rate, mean of the neurons (Hz)", ylim=(0, None))
    right.set(ylabel="coefficient of variation of inter-spike intervals")
    left.legend(frameon=False)
    figure.suptitle(
        f"{len(rates)} networks, with inhibition {inhibition[weakest]:.1f} to "
        f"{inhibition[strongest]:.1f} times as strong as excitation"
    )
    save(figure, path)


def draw_against(
    ax: Axes, inhibition: Float[np.ndarray, " draws"], measured: Float[np.ndarray, "draws trials"]
) -> None:
    """A point for each trial of each draw, and the mean and standard deviation of the trials.

    No line joins the means: draws differ in more than their inhibition.
    """
    trials = measured.shape[1]
    each = np.repeat(inhibition, trials)
    ax.plot(each, measured.ravel(), "o", color=BLUE, alpha=0.35, markeredgewidth=0, label="a trial")
    ax.errorbar(
        inhibition,
        measured.mean(axis=1),
        measured.std(axis=1),
        fmt="D",
        color="black",
        markersize=4,
        capsize=4,
        label=f"mean ± standard deviation of {trials} trials",
    )
    ax.set(xlabel="strength of inhibition, relative to excitation")


# Poles ----------------------------------------------------------------------------------------------


def draw_poles(
    path: Path,
    remembering: Float[np.ndarray, "updates environments"],
    forgetting: Float[np.ndarray, "updates environments"],
    steps: int,
    step: float,
    window: int,
) -> None:
    """Learning curves, and how many poles stay up for how long in the last updates.

    What comes in is the return of each episode, the number of steps (of `step` seconds, out of so many)
    that the pole stays up.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    agents = (("with memory", remembering, BLUE, "-"), ("without memory", forgetting, ORANGE, "--"))
    for label, returns, color, style in agents:
        draw_curve(left, returns, color, style, label)
        draw_standing(right, standing(returns[-window:].ravel(), steps), step, color, style, label)
    draw_standing(right, standing(remembering[0], steps), step, GREY, ":", "untrained")
    left.set(xlabel="training update", ylabel="steps that the pole stays up", ylim=(0, 1.05 * steps))
    right.set(
        xlabel="time (s)", ylabel="share of poles that are up", ylim=(0, 1.05), xlim=(0, steps * step)
    )
    right.yaxis.set_major_formatter(PercentFormatter(1))
    with_memory, without = (float(returns[-window:].mean()) for _, returns, *_ in agents)
    up, down = (float((returns[-window:] >= steps).mean()) for _, returns, *_ in agents)
    tidy(left, f"Learning: {with_memory:.0f} of {steps} steps, without memory {without:.0f}")
    tidy(right, f"Once trained: {up:.0%} are up after {steps * step:g} s, without memory {down:.0%}")
    left.legend(
        frameon=False, title="mean, and middle half", loc="center right", bbox_to_anchor=(1, 0.68)
    )
    right.legend(frameon=False, loc="center right")
    figure.suptitle(
        f"Balancing poles without seeing velocities takes memory ({remembering.shape[1]} environments)"
    )
    save(figure, path)


def draw_curve(
    ax: Axes, returns: Float[np.ndarray, "updates environments"], color: str, style: str, label: str
) -> None:
    """The mean return of each update, and the range of the middle half of the environments."""
    updates = np.arange(1, len(returns) + 1)
    low, high = np.quantile(returns, [0.25, 0.75], axis=1)
    ax.fill_between(updates, low, high, color=color, alpha=0.2, linewidth=0)
    ax.plot(updates, returns.mean(axis=1), style, color=color, linewidth=2, label=label)


def draw_standing(
    ax: Axes, up: Float[np.ndarray, " steps"], step: float, color: str, style: str, label: str
) -> None:
    """The part of the poles that are up, against time."""
    ax.plot(np.arange(len(up)) * step, up, style, color=color, linewidth=2, label=label)


def standing(returns: Float[np.ndarray, " episodes"], steps: int) -> Float[np.ndarray, " steps"]:
    """The part of the poles that are up before each step, and after the last one."""
    return (returns[:, None] >= np.arange(steps + 1)).mean(axis=0)
