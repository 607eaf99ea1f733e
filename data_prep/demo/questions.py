"""Makes questions about scenes.

    scene  ->  all questions that fit it, by skill  ->  a random choice; optionally the scene's own skill comes first

Answers are short and lower case. A question does not give away its answer: yes and no are equally likely, as are the
counts; the frequency of other answers follows from the scenes.
"""

from dataclasses import dataclass
from random import Random

from data_prep.demo.captions import noun, with_article
from data_prep.demo.scene_grammar import COUNT_WORDS, RELATIONS, Scene, ScenesConfig, relations_between
from data_prep.demo.sprites import NATURAL

YES_NO = ("yes", "no")

_SHARE_OF_ONES = 0.12
"""Probability of asking for the count of a single object. Most objects are single, yet "one" must not be the most
likely answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A multiple-choice question with its answer."""

    skill: str
    template: str
    """The wording before names are filled in. Questions of one template have the same kind of answer."""
    text: str
    choices: tuple[str, ...]
    """All possible answers, in the same order for every question of the template."""
    answer: str

    def record(self) -> dict[str, object]:
        """Returns what a sample's ground truth records besides the dialogue turn."""
        return {"skill": self.skill, "template": self.template, "choices": list(self.choices)}


def ask(scene: Scene, rng: Random, config: ScenesConfig, *, own_skill_first: bool) -> list[Question]:
    """Draws up to `config.num_turns` different questions.

    Args:
        scene: the scene that is asked about.
        rng: random generator to draw from.
        config: vocabulary and number of questions.
        own_skill_first: the first question is of the scene's own skill and not about the background; otherwise the
            order is random. In both cases one question is of the scene's skill.
    """
    askable = _askable(scene, rng, config)
    own = [question for question in askable if question.skill == scene.skill and "background" not in question.template]
    first = rng.choice(own or askable)
    others = [question for question in askable if question.text != first.text]
    chosen = [first, *rng.sample(others, min(config.num_turns - 1, len(others)))]
    if not own_skill_first:
        rng.shuffle(chosen)
    return chosen


def _askable(scene: Scene, rng: Random, config: ScenesConfig) -> list[Question]:
    """Returns all questions that fit the scene; random choices such as yes or no, or which kind, are made here."""
    questions = [
        *_presence(scene, rng, config),
        *_names(scene, config),
        *_counts(scene, rng, config),
        *_colours(scene, config),
        *_positions(scene, rng, config),
    ]
    assert len({question.text for question in questions}) == len(questions), scene
    return questions


def _presence(scene: Scene, rng: Random, config: ScenesConfig) -> list[Question]:
    present = sorted({group.kind for group in scene.groups})
    absent = [kind for kind in config.kind_names if kind not in present]

    def question(kind: str, answer: str) -> Question:
        return Question(
            skill="single_object",
            template="is there a {kind}?",
            text=f"is there {with_article(kind)}?",
            choices=YES_NO,
            answer=answer,
        )

    questions = [question(rng.choice(present), "yes"), question(rng.choice(absent), "no")]
    # These are the easiest questions: both are used only if few others fit the scene.
    few_others = len(scene.groups) == 1 and (scene.groups[0].count > 1 or scene.groups[0].colour == NATURAL)
    return questions if few_others else [rng.choice(questions)]


def _names(scene: Scene, config: ScenesConfig) -> list[Question]:
    kinds = [group.kind for group in scene.groups]
    if any(group.count > 1 for group in scene.groups):
        return []
    if len(kinds) == 1:
        text = "what is in the picture?"
        return [Question(skill="single_object", template=text, text=text, choices=config.kind_names, answer=kinds[0])]
    return [
        Question(
            skill="two_objects",
            template="what is there besides the {kind}?",
            text=f"what is there besides the {known}?",
            choices=config.kind_names,
            answer=other,
        )
        for known, other in (kinds, kinds[::-1])
    ]


def _counts(scene: Scene, rng: Random, config: ScenesConfig) -> list[Question]:
    return [
        Question(
            skill="counting",
            template="how many {kinds} are there?",
            text=f"how many {noun(group.kind, 2)} are there?",
            choices=tuple(COUNT_WORDS[count] for count in range(1, config.max_count + 1)),
            answer=COUNT_WORDS[group.count],
        )
        for group in scene.groups
        if group.count > 1 or rng.random() < _SHARE_OF_ONES
    ]


def _colours(scene: Scene, config: ScenesConfig) -> list[Question]:
    background = "what colour is the background?"
    questions = [
        Question(
            skill="colours",
            template=background,
            text=background,
            choices=config.backgrounds,
            answer=scene.background,
        )
    ]
    tinted = [group for group in scene.groups if group.colour != NATURAL]
    skill = "colours" if len(scene.groups) == 1 else "attribute_binding"
    for group in tinted:
        verb = "is" if group.count == 1 else "are"
        questions.append(
            Question(
                skill=skill,
                template="what colour is the {kind}?",
                text=f"what colour {verb} the {noun(group.kind, group.count)}?",
                choices=config.tints,
                answer=group.colour,
            )
        )
    if len(tinted) == 2 and tinted[0].colour != tinted[1].colour and all(group.count == 1 for group in tinted):
        questions += [
            Question(
                skill="attribute_binding",
                template="which thing is {colour}?",
                text=f"which thing is {group.colour}?",
                choices=config.kind_names,
                answer=group.kind,
            )
            for group in tinted
        ]
    return questions


def _positions(scene: Scene, rng: Random, config: ScenesConfig) -> list[Question]:
    """Asks where one of two objects is, if exactly one relation describes it."""
    if len(scene.objects) != 2 or len(scene.groups) != 2:
        return []
    questions = []
    for one, other in (scene.objects, scene.objects[::-1]):
        found = relations_between(one, other, config.sprite_px)
        if len(found) != 1:
            return []
        questions.append(
            Question(
                skill="position",
                template="where is the {kind}?",
                text=f"where is the {one.kind}?",
                choices=tuple(f"{relation} the {other.kind}" for relation in RELATIONS),
                answer=f"{found[0]} the {other.kind}",
            )
        )
        is_true = rng.random() < 0.5
        asked = found[0] if is_true else rng.choice([relation for relation in RELATIONS if relation != found[0]])
        questions.append(
            Question(
                skill="position",
                template="is the {kind} {relation} the {kind}?",
                text=f"is the {one.kind} {asked} the {other.kind}?",
                choices=YES_NO,
                answer="yes" if is_true else "no",
            )
        )
    return questions
