# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vireid:
#     attacks: true
# ---

# %% [markdown]
# # Title of the chapter
#
# Two or three sentences: the question this chapter answers, and why it matters to what comes after.

# %% [markdown]
# ## What you will be able to do
#
# - say what a {term}`query` is ranked against;
# - compute a bound that no perturbation of size {math}`\varepsilon` can break;
# - tell a measured effect from the {term}`chance level`.

# %% [markdown]
# ## What it costs
#
# On Colab the next cell installs the package; the version of torch that the runtime brings is kept. Everywhere else it
# does nothing.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib.metadata import version

    _package = "vireid-lite @ git+https://github.com/vireid-lite/vireid-lite"
    _kept = f"torch=={version('torch')}"  # where the package needs another, pip says so and stops
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", _package, _kept], check=True)

# %% tags=["hide-input"]
from vireid_lite.chapters.costs import Costs
from vireid_lite.chapters.parameters import check_parameters
from vireid_lite.errors import fraction

costs = Costs("00_template")
costs

# %% tags=["parameters"]
TIER: str = "lite"  # lite, standard or full: see the table above
DATASET: "Optional[str]" = None  # synthetic, sysu, regdb, llcm, paired_folder; None: the tier's
DATA_ROOT: "Optional[str]" = None  # folder of your own copy of DATASET
SEED: int = 0  # of everything random here
DEVICE: str = "auto"  # auto, cpu, cuda or cuda:N
OUT_DIR: str = "_build/chapters"  # folder for files this chapter writes
EPS: fraction = "8/255"  # largest change of a pixel, whose range is [0, 1]
STEPS: int = 10  # steps of the demonstration

# %%
settings = check_parameters(globals(), costs, EPS=fraction, STEPS=int)

# %% [markdown]
# ## Threat model
#
# Only in a chapter that attacks (`vireid: attacks: true` in the header): who knows what, where the perturbation enters,
# its budget, what is measured; and what differs from [the default](../book/threat_models.md).

# %% [markdown]
# ## The question
#
# The smallest example that shows it. Every claim is followed by the few lines that show it.

# %%
import matplotlib.pyplot as plt
import numpy as np

generator = np.random.default_rng(settings.seed)
steps = settings.steps * {"lite": 1, "standard": 10, "full": 100}[settings.tier]
drift = np.cumsum(generator.normal(size=steps) * settings.eps)
walk = np.clip(drift, -settings.eps, settings.eps)

# %% mystnb={"figure": {"caption": "A random walk held inside the budget. It touches the bound and never crosses it.", "name": "fig-template-walk"}, "image": {"alt": "Line chart: one blue line moves up and down between two dashed grey lines at plus and minus eight."}}
figure, axes = plt.subplots(figsize=(6, 2.5))
axes.plot(255 * walk, color="#0072B2", marker="o")
for bound in (-255 * settings.eps, 255 * settings.eps):
    axes.axhline(bound, color="#555555", linestyle="--")
axes.set(xlabel="step", ylabel="change (of 255)")
plt.show()

# %% [markdown]
# {numref}`fig-template-walk` shows that {math}`|x' - x| \le \varepsilon` holds at every step, as {cite:t}`gong2024cmps`
# require.

# %% [markdown]
# ## What could fool us
#
# - The chance level: what a ranking without any information reaches.
# - One seed is one draw.

# %% [markdown]
# ## Takeaways
#
# - One sentence a reader can repeat tomorrow.
# - Another.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: where does the walk stop?
# :label: ex-template-stop
# ```
# How often does the walk sit exactly on the bound? Say what you expect before you count.
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-template-stop
# :class: dropdown
# ```
# Count the steps whose size equals the bound.

# %%
int((np.abs(walk) == settings.eps).sum())

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: a smaller budget
# :label: ex-template-smaller
# ```
# Repeat the chapter with `EPS = "2/255"`. What changes in the figure, and what does not?
# ```{exercise-end}
# ```

# %% [markdown]
# ```{solution-start} ex-template-smaller
# :class: dropdown
# ```
# The walk's steps shrink with the budget, so it meets the bound equally often.

# %%
smaller = np.clip(walk / 4, -2 / 255, 2 / 255)
bool(np.abs(smaller).max() <= 2 / 255)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`gong2024cmps`.
