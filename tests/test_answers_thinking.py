"""Thinking is parted from what a reply says, for every mark that we know."""

import time

import pytest

from maft.answers.thinking import strip

PARTED = {
    "plain": ("The answer is 7.", "", "The answer is 7."),
    "tags": ("<think>Is it 5? No.</think> It is 7.", "Is it 5? No.", "It is 7."),
    "the prompt opened it": ("So 5. hmm.</think>\n\nIt is 7.", "So 5. hmm.", "It is 7."),
    "unclosed": ("<think> First guess 5. But wait", "First guess 5. But wait", ""),
    "empty": ("<think>\n\n</think>\n\n7", "", "7"),
    "said before and after": ("One moment. <think>5?</think> It is 7.", "5?", "One moment.\nIt is 7."),
    "twice": ("<think>5</think> Let me see. <think>6</think> 7", "5\n6", "Let me see.\n7"),
    "answer, then thought without end": ("It is 7. <think>or is it 5", "or is it 5", "It is 7."),
    "nested": ("<think>a <think>b</think> c</think> 7", "a\nb\nc", "7"),
    "capitals": ("<THINK>5</THINK>7", "5", "7"),
    "thinking": ("<thinking>5</thinking>7", "5", "7"),
    "thought": ("<thought>\n5\n</thought>\n\n7", "5", "7"),
    "reasoning": ("<reasoning>5</reasoning>\n7", "5", "7"),
    "seed": ("<seed:think>5</seed:think>7", "5", "7"),
    "mistral": ("[THINK]5?[/THINK]7", "5?", "7"),
    "mistral unclosed": ("[THINK]5?", "5?", ""),
    "kimi": ("◁think▷5◁/think▷7", "5", "7"),
    "cohere": ("<|START_THINKING|>5<|END_THINKING|><|START_RESPONSE|>7<|END_RESPONSE|>", "5", "7"),
    "sky": ("<|begin_of_thought|>5<|end_of_thought|>\n<|begin_of_solution|>7<|end_of_solution|>", "5", "7"),
    "gemma": ("<|channel>thought\n5<channel|>7", "5", "7"),
    "harmony": (
        "<|channel|>analysis<|message|>5?<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>", "5?", "7",
    ),
    "harmony commentary": (
        "<|channel|>analysis<|message|>5<|end|><|start|>assistant<|channel|>commentary to=f <|constrain|>json<|message|>6"
        "<|call|><|start|>assistant<|channel|>final<|message|>7", "5\n6", "7",
    ),
    "harmony cut": ("<|channel|>analysis<|message|>It may be 5", "It may be 5", ""),
    "harmony without message marks": ("<|channel|>analysis 5? <|channel|>final 7", "5?", "7"),
    "harmony without marks": ("analysisWe guess 5.assistantfinalIt is 7.", "We guess 5.", "It is 7."),
    "harmony without marks, cut": ("analysisWe guess 5.", "We guess 5.", ""),
    "the word analysis": ("Analysis: 3 + 4. It is 7.", "", "Analysis: 3 + 4. It is 7."),
    "a word in brackets": ("[think] about it", "", "[think] about it"),
    "less than": ("x < think > 3", "", "x < think > 3"),
    "nothing": ("", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTED)
def test_a_reply_is_parted(name):
    text, thinking, rest = PARTED[name]
    assert strip(text) == (thinking, rest)


@pytest.mark.parametrize(
    "text",
    ["<think>" * 20_000, "</think>" * 20_000, "<" * 100_000, "<|channel|>" * 10_000, "<|channel|>analysis" * 10_000,
     "analysisA" + "assistant" * 10_000, "<|start|>" + " " * 100_000, "[think" * 20_000, "<think></think>x" * 8_000],
)  # fmt: skip
def test_hostile_replies_are_parted_quickly(text):
    start = time.process_time()
    strip(text)
    assert time.process_time() - start < 1
