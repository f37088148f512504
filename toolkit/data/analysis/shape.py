"""The shape of statistics.json and compare.json, with what each number means."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from toolkit.data.samples import END_TOKEN, IMAGE_TOKEN

LISTED = 20  # of the largest groups, the first problems, the commonest words

Number = Annotated[float, PlainSerializer(lambda value: round(value, 6))]


class Section(BaseModel):
    """What is written is what is declared here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(Section):
    """A line that is not a valid row, or a row whose image cannot be read."""

    line: int = Field(
        ge=1, description="in the file; of an image, the first row's place among the valid rows"
    )
    reason: str


class Group(Section):
    """Rows that share something."""

    value: str = Field(description="the caption, or the first image path")
    rows: int = Field(ge=2)
    ids: list[str] = Field(max_length=LISTED)


class Duplicates(Section):
    """Exact repetitions among the valid rows."""

    distinct: int
    groups: int = Field(description="groups of two or more rows")
    rows: int = Field(description="rows in these groups")
    largest: list[Group] = Field(max_length=LISTED)


class Distribution(Section):
    """Of one number a row or image; sd with n - 1."""

    count: int
    mean: Number
    sd: Number
    minimum: Number
    q05: Number
    q25: Number
    median: Number
    q75: Number
    q95: Number
    maximum: Number


class Images(Section):
    """Distinct image files of the valid rows."""

    files: int
    readable: int = Field(description="decoded in full")
    problems: list[Problem] = Field(max_length=LISTED)
    formats: dict[str, int]
    modes: dict[str, int]
    width: Distribution | None = Field(description="pixels")
    height: Distribution | None = Field(description="pixels")
    short_side: Distribution | None = Field(description="pixels")
    aspect_ratio: Distribution | None = Field(description="width by height")
    bytes: Distribution | None
    commonest_short_side: int | None = Field(description="pixels")
    of_commonest_short_side: int = Field(description="images that have it")


class Markers(Section):
    """The two special tokens in the valid rows; rows with a wrong number of them are among the problems."""

    image_first: int = Field(
        description=f"rows that start with {IMAGE_TOKEN} and a line break, as the seed's do"
    )
    image_elsewhere: int
    end_last: int = Field(description=f"rows that end with a blank and {END_TOKEN}, as the seed's do")
    end_elsewhere: int
    end_missing: int


class Text(Section):
    """Captions: what is left of a row's text without the two special tokens."""

    characters: Distribution
    characters_with_markers: Distribution
    words: Distribution = Field(description="separated by white space, the contest's way of counting")
    scripts: dict[str, int] = Field(
        description="rows by the script of most of their letters (first word of the letters' Unicode "
        "names): no statement on the language within a script"
    )
    other_scripts: dict[str, list[str]] = Field(description="the first ids of every script but the commonest")


class Estimate(Section):
    """A measure that does not depend on the number of rows, with its 95 % interval over the choice of
    rows."""

    value: Number | None = Field(description="null where it is not defined")
    low: Number | None
    high: Number | None


class Sample(Section):
    """Measures of random rows: those that hold still from sample to sample can be compared between data
    sets."""

    rows: int
    words: int
    type_token_ratio: Number
    entropy: Number
    entropy_miller_madow: Number
    hdd: Number
    mtld: Number | None
    distinct_words_of_1000: Number = Field(description="expected among 1,000 words drawn without replacement")


class Diversity(Section):
    """Words are lower-case runs of letters and digits here."""

    words: int
    vocabulary: int = Field(description="distinct words; grows with the number of rows")
    once: int = Field(description="words that occur once")
    type_token_ratio: Number = Field(
        description="vocabulary by words; falls with the number of rows: no measure to compare by"
    )
    entropy: Number = Field(description="bits a word, plug-in; grows with the number of rows")
    entropy_miller_madow: Number = Field(description="bits a word, corrected")
    measures: dict[str, Estimate]
    by_sample_size: list[Sample] = Field(description="why ratios mislead: the same rows, only fewer")
    commonest: dict[str, int] = Field(description="the commonest words")


class Statistics(Section):
    """statistics.json."""

    version: int = 1
    sha256: str = Field(description="of the file of rows")
    lines: int = Field(description="that are not blank")
    rows: int = Field(description="valid ones: everything below is about them")
    ids: int = Field(description="distinct ones")
    problem_lines: int
    problems: list[Problem] = Field(max_length=LISTED)
    same_caption: Duplicates
    same_image: Duplicates = Field(description="by the bytes of the files")
    same_row: Duplicates = Field(description="same caption and same image")
    images: Images
    markers: Markers
    text: Text
    diversity: Diversity | None = Field(description="null where no caption has a letter or digit")


class Difference(Section):
    """One measure of both data sets."""

    a: Number | None = Field(description="null where it is not defined")
    b: Number | None
    difference: Number | None = Field(description="b minus a")
    low: Number | None = Field(description="95 % interval of the difference over the choice of rows")
    high: Number | None
    verdict: str = Field(
        pattern="^(higher|lower|undecided)$", description="of b, where the interval leaves out 0"
    )


class Comparison(Section):
    """compare.json."""

    version: int = 1
    a: str = Field(pattern="^[^/]", description="file of rows")
    b: str = Field(pattern="^[^/]", description="file of rows")
    rows_a: int
    rows_b: int
    other_lines_a: int = Field(description="that are no valid row")
    other_lines_b: int = Field(description="likewise")
    ids_in_both: int
    halves: int = Field(description="random halves of the ids that the intervals come from")
    seed: int
    measures: dict[str, Difference]
