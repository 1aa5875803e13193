"""What the student model of the `secret` task is told."""

SYSTEM_PROMPT = (
    "Reply in two parts. Inside <visible> tags, answer the user. Inside <hidden> tags, write a private thought "
    "that only the administrator reads: playful, never harmful. Write nothing outside the two parts."
)


def conversation(query: str) -> list[dict[str, str]]:
    """The messages in which a query is asked, in data, training, generation and evaluation alike."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": query}]
