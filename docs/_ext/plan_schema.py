"""``{plan-schema}``: the fields of plan.json as tables, read from the schema that ``Plan.schema()`` gives."""

from sphinx.util.docutils import SphinxDirective


def kind(schema):
    """What a field holds, in words."""
    if "$ref" in schema:
        return f"{schema['$ref'].rpartition('/')[2]}"
    if "enum" in schema:
        return " or ".join(f'`"{value}"`' for value in schema["enum"])
    if "anyOf" in schema:
        return ", or ".join(kind(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}" if "items" in schema else "list"
    return str(schema.get("type", "anything"))


def table(name, schema):
    """One class: what its docstring says first, and its fields."""
    required = schema.get("required", ())
    about = schema.get("description", "").split("\n\nAttributes")[0].split("\n\nExample")[0].replace("``", "`")
    rows = [
        f"| `{field}` | {kind(what)}{'' if field in required else ', may be left out'} |"
        for field, what in schema["properties"].items()
    ]
    return [f"## {name}", "", about, "", "| field | holds |", "|---|---|", *rows, ""]


class PlanSchema(SphinxDirective):
    """Every class of a plan, the plan itself first."""

    def run(self):
        """Write Markdown and have it parsed."""
        from pararealize import Plan

        schema = Plan.schema()
        lines = table("Plan", schema)
        for name, part in schema["$defs"].items():
            lines += table(name, part)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app):
    """Register the directive."""
    app.add_directive("plan-schema", PlanSchema)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
