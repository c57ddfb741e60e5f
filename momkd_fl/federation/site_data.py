"""From a site's configuration to its cohort, as the federation's plan asks for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cohort import Cohort
from momkd_fl.data.fingerprint import Fingerprint, fingerprint
from momkd_fl.data.load import load_cohort
from momkd_fl.data.splits import Split
from momkd_fl.errors import UserError

Say = Callable[[str], None]


def cohort_loader(site: SiteConfig, say: Say) -> Callable[[FederationConfig], tuple[Cohort, Fingerprint]]:
    """A function that reads the site's cohort once the task, the encoder and the graph are known."""

    def read(federation: FederationConfig) -> tuple[Cohort, Fingerprint]:
        started = time.monotonic()
        say(f"Reading the cohort for task {federation.task}.")
        cohort = cohort_for_run(site, federation)
        splits: tuple[Split, ...] = ("train", "validation") if site.role == "train" else ("test",)
        for split in splits:
            if not cohort.labelled(split):
                raise UserError(
                    "split-empty",
                    f"Site '{site.site}': no labelled patient for '{federation.task}' is in the split '{split}'. "
                    "Add patients, correct the splits file, or change training.validation_fraction.",
                )
        left_out = ", ".join(f"{count} labelled {value!r}" for value, count in cohort.exclusions.items())
        say(
            f"{len(cohort.patients)} patients with slides read in {time.monotonic() - started:.1f} s; excluded for "
            f"'{federation.task}': {left_out or 'none'}."
        )
        return cohort, fingerprint(site, cohort)

    return read


def cohort_for_run(site: SiteConfig, federation: FederationConfig, *, labels_needed: bool = True) -> Cohort:
    """The site's cohort as a run's shared settings ask (raises UserError as :func:`load_cohort`).

    Parameters
    ----------
    labels_needed : whether somebody must have a label
    """
    return load_cohort(
        site,
        task=federation.task,
        classes=federation.classes,
        encoder=federation.encoder,
        neighbours=federation.model.graph_neighbours,
        standardise=federation.training.standardise,
        validation_fraction=federation.training.validation_fraction,
        seed=federation.seed,
        independent_splits=federation.privacy.active,
        labels_needed=labels_needed,
    )


def device_of(site: SiteConfig) -> torch.device:
    """Where to compute; also sets torch's number of threads.

    Raises
    ------
    UserError
        ``device-missing`` when 'cuda' is asked for and there is none.
    """
    torch.set_num_threads(site.threads or os.cpu_count() or 1)
    if site.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device-missing",
            f"Site '{site.site}': device is 'cuda', but torch sees no GPU. Install the CUDA build of torch, "
            "or set device to 'cpu' or 'auto'.",
        )
    wanted = site.device if site.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)
