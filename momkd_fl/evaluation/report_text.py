"""The report's sentences: what was found, and what is not guaranteed. Each is made from the numbers alone."""

from __future__ import annotations

from typing import Final

from momkd_fl.evaluation.report_svg import number
from momkd_fl.evaluation.results import METHODS, Difference, Estimate, Method, Results

_WORDS: Final = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_LEVEL: Final = 0.05
_MODELS: Final[dict[Method, str]] = {
    "federated": "one model of all training hospitals, with genomics in its memory where a hospital has them",
    "pooled": "the same model, all training hospitals' patients in one place",
    "local_median": "a model per hospital, trained on its own patients alone; the median of these models",
    "local_best": "the best of these models",
    "no_genomics_control": "the same federation, but its memory never saw genomics",
    "shuffled_within_class": "every patient has the genomics of another patient of the same class",
    "shuffled_genomics": "every patient has the genomics of any other patient",
    "random_memory": "the federated model; after training, random directions took its memory's place",
    "random_slots": "the memory is fixed random orthogonal directions from the start",
    "label_slots": "the memory's slots are learnt from the labels alone",
    "attention_mil": "gated attention, no memory and no genomics",
    "batch_cosine": "histology is drawn to the genomics of the same batch by cosine, no memory",
    "batch_mse": "histology is drawn to the genomics of the same batch by squared error, no memory",
    "class_prototypes": "one prototype a class is shared instead of a memory",
    "out_of_fold_logits": "histology learns the logits of a genomic teacher that did not see the patient",
}
_STEPS: Final = {
    "scaling": "the genes' scaling",
    "moments": "the genomic space",
    "anchors": "the anchors",
    "slots": "the first slots",
}
_ORIGINS: Final = {
    "synthetic": "Synthetic patients",
    "simulation": "Simulation on one machine",
    "federation": "Live federation",
}


def origin(results: Results) -> str:
    """Where the patients of the run come from, as a label."""
    return _ORIGINS[results.origin]


def who(results: Results) -> str:
    """The first sentence: who trained."""
    count, kind = len(results.training_sites), "" if results.origin == "federation" else "simulated "
    hospitals = f"{_word(count)} {kind}hospital{'s' if count != 1 else ''}"
    if "weights" not in results.protection.artefacts.get("train", {"weights": ""}):
        return (
            f"{hospitals.capitalize()} trained a model each against one shared memory. They exchanged summed "
            "statistics, never weights, slides, genomes or labels."
        )
    return (
        f"{hospitals.capitalize()} trained one model together. They exchanged weights and summed statistics, never "
        "slides, genomes or labels."
    )


def finding(results: Results, task: str) -> str:
    """The main result of a task: the federated model on hospitals that never trained."""
    held_out = results.held_out.get("federated", {}).get(task)
    if held_out is None:
        return f"{task}: no held-out hospital was scored, so this run says nothing about new hospitals."
    count = len(held_out.sites) or len(results.held_out_sites)
    where = f"On {_word(count)} hospital{'s' if count != 1 else ''} that never trained"
    if held_out.pooled.value is None:
        return f"{where}, the AUROC for {task} is not estimable: {held_out.pooled.reason}."
    return f"{where}, one federated model recognises {task} with an AUROC of {spoken(held_out.pooled)}."


def comparisons(results: Results, task: str) -> list[str]:
    """One sentence per comparison that was made: pooled data, one hospital alone, the two controls of genomics."""
    sentences = [
        _against_pooled(results, task),
        _against_local(results, task),
        _against_control(results, task, "no_genomics_control", "the same method without them"),
        _against_control(results, task, "shuffled_within_class", "genomics shuffled within each class"),
        _against_control(results, task, "shuffled_genomics", "genomics shuffled over all patients"),
    ]
    made = [sentence for sentence in sentences if sentence]
    return made or ["This run made no comparison with pooled data, one hospital alone or a memory without genomics."]


def models(results: Results) -> list[tuple[Method, str]]:
    """Every method the run has a number of, and what it is."""
    return [(method, _MODELS[method]) for method in METHODS if results.held_out.get(method)]


def spoken(estimate: Estimate) -> str:
    """An estimate in a sentence."""
    if estimate.value is None:
        return "not estimable"
    if estimate.low is None:
        return number(estimate.value)
    return f"{number(estimate.value)} (95% interval {number(estimate.low)} to {number(estimate.high)})"


def not_guaranteed(results: Results) -> list[str]:
    """What a reader must not conclude from this run."""
    said = ["This is research software. It is not a medical device, and no diagnosis may rest on it."]
    if results.origin == "synthetic":
        said.append(
            "The patients are synthetic: the numbers show that the machinery works, not how it does on patients."
        )
    if results.origin == "simulation":
        said.append("All data were on one machine: the privacy of a live federation was not put to the test.")
    if results.protection.aggregation != "secagg":
        said.append(
            "The coordinator saw each site's own update and memory statistics (no secure aggregation). Updates can "
            "reveal something about the patients they were made from."
        )
    said += started(results)
    bounds = results.protection.epsilon
    said += protected(results)
    if not bounds or any(epsilon is None for epsilon in bounds.values()):
        said.append(
            "No differential privacy bound is claimed (ε = ∞). Neither the model nor its memory is anonymous; share "
            "them as you would share data about the patients."
        )
    said.append("A malicious site can bias the model. Membership in the federation is the defence, not the software.")
    few = len(results.held_out_sites)
    if few < 4:
        said.append(
            f"{_word(few).capitalize()} held-out hospital{'s' if few != 1 else ''} cannot show how the model varies "
            "between hospitals: from four on the report gives a prediction interval for a new one."
        )
    said.append(
        "Intervals cover the draw of patients, not the chance of training. Repeat with other seeds before "
        "small differences are believed."
    )
    said.append("The threshold and calibration come from the training sites. Check them locally before use elsewhere.")
    return said


def started(results: Results) -> list[str]:
    """Whose sums the start is made of; steps of the same sites in one sentence."""
    steps: dict[tuple[str, ...], list[str]] = {}
    for step, sites in results.protection.started.items():
        steps.setdefault(tuple(sites), []).append(_STEPS.get(step, step))
    return [
        f"Made at the start of sums over {', '.join(sites)} alone: {', '.join(made)}. A site that came later trains in "
        "them; they are not of its patients."
        for sites, made in steps.items()
    ]


def protected(results: Results) -> list[str]:
    """What noise promises of this run, with its condition, and how much of the memory it left in place."""
    given, said = results.protection, list[str]()
    at = f"at δ = {given.delta:g}" if given.delta else ""
    bounded = [epsilon for site, epsilon in given.epsilon.items() if epsilon and site in results.training_sites]
    if bounded:
        said.append(
            f"Differential privacy by patient: whatever a training site let out cost each of its patients at most ε = "
            f"{max(bounded):.3g} {at}. That bounds what joining reveals; it makes nobody anonymous. A patient of two "
            "sites is charged at both. Times of messages and error codes are not counted."
        )
    elif given.memory_epsilon is not None:
        kind = (
            "given the weights, which left without noise; without that condition it is unbounded"
            if given.memory_conditional
            else "whatever the weights were"
        )
        said.append(f"The memory's releases alone cost ε = {given.memory_epsilon:.3g} {at}, {kind}.")
        if given.memory_conditional and given.anchors_epsilon is not None:
            said.append(f"Its genomic anchors cost ε = {given.anchors_epsilon:.3g}, whatever the weights were.")
    if given.noise_sites is not None:
        alone = "is unbounded" if given.alone_epsilon is None else f"is {given.alone_epsilon:.3g}"
        said.append(
            f"These ε hold only if at least {given.noise_sites} sites of every sum were honest: each added a share of "
            "the noise inside secure aggregation. If all other sites join against one, the ε of what the memory told "
            f"of its patients {alone}."
        )
    if given.memory_epsilon is not None:
        for name, share in given.slots_released.items():
            said.append(f"Of the memory's {name}, {share:.0%} were ever moved by a release; the others stayed public.")
    return said


def difference(results: Results, task: str, reference: Method) -> Difference | None:
    """Federated minus ``reference`` over all held-out patients, where it was computed."""
    for one in results.differences:
        if (one.task, one.method, one.reference, one.site) == (task, "federated", reference, None):
            return one
    return None


def direction(one: Difference) -> int:
    """1 or -1 where the interval excludes 0 and p, adjusted over tasks, is under 0.05 where it was computed; else 0."""
    low, high, p_value = one.difference.low, one.difference.high, one.p_value if one.p_holm is None else one.p_holm
    if low is None or high is None or (p_value is not None and p_value >= _LEVEL):
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _against_pooled(results: Results, task: str) -> str | None:
    federated, pooled = _value(results, "federated", task), _value(results, "pooled", task)
    if federated is None or pooled is None:
        return None
    return (
        f"The same model trained on the pooled data reaches {number(pooled)}: federation kept "
        f"{100 * federated / pooled:.0f}% of it{_paired(difference(results, task, 'pooled'))}."
    )


def _against_local(results: Results, task: str) -> str | None:
    local = _value(results, "local_median", task)
    if local is None or _value(results, "federated", task) is None:
        return None
    return (
        f"A hospital that trains alone reaches {number(local)} (median)"
        f"{_paired(difference(results, task, 'local_median'))}."
    )


def _against_control(results: Results, task: str, control: Method, name: str) -> str | None:
    one = difference(results, task, control)
    if one is None or one.difference.value is None or one.difference.low is None or one.difference.high is None:
        return None
    size = (
        f"{signed(one.difference.value)} (95% interval {signed(one.difference.low)} to {signed(one.difference.high)})"
    )
    if direction(one) > 0:
        return f"Genomics in the memory gained {size} over {name}."
    if direction(one) < 0:
        return f"Genomics in the memory lost {size} against {name}."
    return f"Whether genomics in the memory gain over {name} cannot be told from this run: {size}."


def _paired(one: Difference | None) -> str:
    if one is None or one.difference.value is None or one.difference.low is None or one.difference.high is None:
        return ""
    low, high = one.difference.low, one.difference.high
    verdict = {1: "federated is better", -1: "federated is worse", 0: "no clear difference"}[direction(one)]
    size = f"{signed(one.difference.value)}, 95% interval {signed(low)} to {signed(high)}"
    return f"; {verdict} ({size})"


def _value(results: Results, method: Method, task: str) -> float | None:
    held_out = results.held_out.get(method, {}).get(task)
    return None if held_out is None else held_out.pooled.value


def signed(value: float) -> str:
    """A difference with its sign."""
    text = number(value)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def _word(count: int) -> str:
    return _WORDS[count] if count < len(_WORDS) else str(count)
