"""The kinds of maps: one table for the viewer, the figures and the command line, whose public names differ in two."""

from dataclasses import dataclass

MEAN = "mean"  # of all steps, or of all heads
EACH = "each"  # any one head, by its number
PAPER = "paper"  # heads side by side, as in the paper's figure
EVERY_HEAD = (MEAN, "max", EACH)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to look at one layer at one step."""

    name: str  # in the viewer's questions and answers
    figure: str  # in the command line and in names of files
    title: str  # in the viewer
    help: str  # in the viewer
    caption: str  # below a figure
    heads: tuple[str, ...]  # how heads can be joined in the viewer
    colour: bool = False  # its values are colours, not heat


ROW = Kind(
    name="row",
    figure="rows",
    title="Where it looks",
    help="Point at a patch of either picture, click to keep it, drag for a region, or use the arrow keys.",
    caption="where the marked patches look",
    heads=EVERY_HEAD,
)
RECEIVED = Kind(
    name="received",
    figure="received",
    title="Looked at",
    help="How much all patches together look at each: dark least, bright most.",
    caption="how much every patch is looked at by all",
    heads=EVERY_HEAD,
)
ENTROPY = Kind(
    name="entropy",
    figure="entropy",
    title="How widely",
    help="Entropy of each patch's attention: the darkest look at the fewest places, the brightest most widely.",
    caption="how widely every patch looks: dark at one place, bright everywhere alike",
    heads=EVERY_HEAD,
)
DISTANCE = Kind(
    name="distance",
    figure="distance",
    title="How far",
    help="How far away each patch looks, on average: bright is far.",
    caption="how far away every patch looks, on average",
    heads=EVERY_HEAD,
)
PCA = Kind(
    name="pca",
    figure="pca",
    title="PCA",
    help="Patches that look at the same places have the same colour: the first three principal components, "
    "one basis for both models and all steps.",
    caption="three principal components as colours: patches that look at the same places are alike",
    heads=(MEAN, PAPER, EACH),
    colour=True,
)
SEGMENTS = Kind(
    name="segments",
    figure="segments",
    title="Segments",
    help="Patches gathered by where they look, with no word involved.",
    caption="patches gathered by where they look (divergence up to a quarter of the largest), most of them in blue",
    heads=(MEAN,),
    colour=True,
)
WORD = Kind(
    name="word",
    figure="words",
    title="Words",
    help="Where this word of the prompt is drawn: cross-attention.",
    caption="where each word of the prompt is drawn, by cross-attention",
    heads=(MEAN,),
)
KINDS = {kind.name: kind for kind in (ROW, RECEIVED, ENTROPY, DISTANCE, PCA, SEGMENTS, WORD)}
FIGURES = {kind.figure: kind for kind in KINDS.values()}
