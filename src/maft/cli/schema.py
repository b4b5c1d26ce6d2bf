"""`maft schema`: the settings for editors that complete and check YAML."""

import json

import click


@click.command(epilog="Example: maft schema > maft.schema.json")
def schema() -> None:
    """Print the JSON schema of a config, with every setting's description.

    An editor with a YAML language server completes and checks a config whose first line is
    `# yaml-language-server: $schema=maft.schema.json`.
    """
    from maft.config import RunConfig

    click.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
