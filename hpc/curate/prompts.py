"""What models are asked, where a spec names no words of its own. Changing one raises the VERSION of the stages.

The subjects are those of Cosmos-Curate's prompts (cosmos_curate 29f1358: models/prompts.py), the words are our own.
"""

from __future__ import annotations

CAPTION = {
    "default": (
        "Describe this video in detail, in one or two paragraphs of plain prose. Say what there is to see: the "
        "place, the people, animals and things, and how they look. Say what happens and in which order, how "
        "things move, and what the camera does: whether it stands, pans, or travels. Mention light, weather and "
        "style where they can be seen. Describe only what the video shows."
    ),
    "av": (
        "This video was taken by a camera on a car that is being driven. Describe the drive in detail, in plain "
        "prose: how this car moves (its speed, lane, turns, stops), what the other vehicles do and where they are "
        "relative to it, where pedestrians and cyclists are and where they are going, and the lanes, markings, "
        "signs and traffic lights that matter to it. Point out anything that bears on safety, such as sudden "
        "braking, cutting in, or a narrow gap. Describe the surroundings too: kind of road, buildings, landmarks, "
        "weather, light. Describe only what the video shows."
    ),
    "av-surveillance": (
        "This video was taken by a fixed camera that watches a road. Describe the traffic in detail, in plain "
        "prose: the vehicles, where they come from and go, their speed and distances, where pedestrians and "
        "cyclists are and what they do, and the lanes, markings, signs and traffic lights that govern them. Point "
        "out anything that bears on safety, such as collisions, near misses, running a red light, driving in the "
        "wrong direction, or a stopped vehicle. Describe the place too: layout of the road, buildings, landmarks, "
        "weather, light. Describe only what the video shows."
    ),
}
SECOND = {
    "default": (
        "Below is a description of this video. Watch the video again and write a better one: correct what is "
        "wrong, add what matters and is missing, above all how things look, move and follow one another, and take "
        "out repetition and guesses. Answer with the new description alone.\n\n{caption}"
    ),
}
ENHANCE = {
    "default": (
        "You rewrite descriptions of videos. Write the description that you are given out into a longer one that "
        "reads well: keep every fact and the order of events, and make colours, shapes, movements and mood vivid. "
        "Invent no objects or events. Answer with the new description alone, without a question or an offer at "
        "its end."
    ),
    "av-surveillance": (
        "You rewrite descriptions of videos from cameras in cars and above roads. Write the description that you "
        "are given out into a longer one: keep every fact and the order of events, be exact about vehicles, "
        "people, lanes, signals and what bears on safety, and end with one sentence that sums it up. Invent no "
        "objects or events. Answer with the new description alone."
    ),
}


def second(words: str, caption: str) -> str:
    """A second question with the first answer in it: where the words say {caption}, else at their end."""
    return words.replace("{caption}", caption) if "{caption}" in words else f"{words}\n\n{caption}"
