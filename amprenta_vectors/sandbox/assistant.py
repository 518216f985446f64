"""An application that asks its document store, wherever ``VECTOR_BACKEND`` says that is: the caller stays as it is."""

from __future__ import annotations

import click


@click.command()
@click.argument("question")
@click.argument("users", nargs=-1, required=True)
def main(question: str, users: tuple[str, ...]) -> None:
    """Ask for the four documents of each of USERS that are nearest to QUESTION."""
    from amprenta_vectors.systems.documents.assistant import get_document_store

    for user in users:
        click.echo(f"{user}:")
        for document, score in get_document_store(user_id=user).similarity_search_with_score(question):
            first_line = document.page_content.strip().partition("\n")[0]
            click.echo(f"  {score:.4f}  {document.id}  {first_line[:60]}")


if __name__ == "__main__":
    main()
