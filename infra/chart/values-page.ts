/**
 * Pure: makes the chart's `values.md` from `values.yaml`, whose comments say what each key means, and from the schema, which says what it
 * may be.
 */
import { isMap, type Pair, parseDocument, type Scalar, type YAMLMap } from "yaml";
import { z } from "zod";
import { chartValues } from "../../packages/contracts/src/generate/chart-values.ts";
import { code, table, valuesOf } from "../../packages/contracts/src/generate/markdown-tables.ts";

type Json = Record<string, unknown>;

/** What stands in every section for pods; the section `gateway` explains it. */
const ofEveryPod = ["replicas", "autoscaling", "env", "resources", "nodeSelector", "tolerations", "affinity"].concat([
  "priorityClassName",
  "podAnnotations",
  "podLabels",
  "podTemplate",
]);

/** A key that is not divided further, or a section below another one. */
interface Leaf {
  /** `nats.tls.secret` */
  path: string;
  name: string;
  /** In YAML; empty of a section. */
  value: string;
  /** Its own comment, or that of the key above that has one, which is then about both. */
  meaning: string;
  own: boolean;
}

/** Lines of a comment as one text. A line that shows the key itself is an example, and so is what follows it. */
function said(comment: string, name: string): string {
  // What stands before an empty line is about the file.
  const [last = ""] = comment.split("\n\n").slice(-1);
  const lines = last.split("\n").map((line) => line.trim().replace(/^-- /, ""));
  const example = lines.findIndex((line) => line.startsWith(`${name}:`));
  const words = (example === -1 ? lines : lines.slice(0, example)).join(" ");
  if (example === -1) return words;
  return `${words} ${lines.length > example + 1 ? "Example: values.yaml." : `Example: ${code(lines[example])}`}`;
}

/** Whether a section of its own; requests and limits of a container belong together. */
const isDivided = ({ key, value }: Pair): boolean => isMap(value) && value.flow !== true && (key as Scalar).value !== "resources";

function leavesOf(map: YAMLMap, above: string, source: string): Leaf[] {
  let meaning = "";
  return map.items.flatMap((pair, index): Leaf[] => {
    const key = pair.key as Scalar<string>;
    const path = `${above}${key.value}`;
    // The parser gives a comment before the first key to the map.
    const comment = key.commentBefore ?? (index === 0 ? map.commentBefore : undefined) ?? "";
    if (isDivided(pair)) {
      meaning = "";
      const below = leavesOf(pair.value as YAMLMap, `${path}.`, source);
      // What is said of a whole section stands above its keys.
      return above === "" || comment === ""
        ? below
        : [{ path, name: key.value, value: "", meaning: said(comment, key.value), own: true }, ...below];
    }
    const own = comment !== "";
    if (own) meaning = said(comment, key.value);
    const [from = 0, to = 0] = (pair.value as Scalar).range ?? [];
    const lines = source.slice(from, to).trim().split(/\n\s*/);
    return [
      {
        path,
        name: key.value,
        value: isMap(pair.value) && pair.value.flow !== true ? `{${lines.join(", ")}}` : lines.join(" "),
        meaning,
        own,
      },
    ];
  });
}

/** The schema of a key. */
const schemaAt = (root: Json, path: string): Json =>
  path.split(".").reduce<Json>((schema, name) => (schema["properties"] as Record<string, Json> | undefined)?.[name] ?? {}, root);

/** @param source - text of values.yaml. */
export function valuesPage(source: string): string {
  const root = z.toJSONSchema(chartValues, { target: "draft-07", io: "input", reused: "inline" }) as Json;
  const { contents } = parseDocument(source);
  if (!isMap(contents)) throw new Error("values.yaml is no map");
  const all = leavesOf(contents, "", source);
  const ofPods = new Map(all.filter(({ path, name }) => path === `gateway.${name}`).map(({ name, meaning }) => [name, meaning]));
  const meaningOf = ({ name, own, meaning }: Leaf): string => (!own && ofEveryPod.includes(name) ? (ofPods.get(name) ?? "") : meaning);
  const rows = (leaves: readonly Leaf[]): string =>
    table(
      ["Key", "Values", "Default", "Meaning"],
      leaves.map((leaf) =>
        leaf.value === ""
          ? [code(leaf.path), "", "", leaf.meaning]
          : [code(leaf.path), valuesOf(schemaAt(root, leaf.path)), code(leaf.value), meaningOf(leaf)],
      ),
    );
  const sections = contents.items.map((pair, index) => {
    const key = pair.key as Scalar<string>;
    const comment = key.commentBefore ?? (index === 0 ? contents.commentBefore : undefined) ?? "";
    const divided = isDivided(pair);
    const leaves = all.filter(({ path }) => path === key.value || path.startsWith(`${key.value}.`));
    return { name: key.value, divided, intro: divided ? said(comment, key.value) : "", leaves };
  });
  const plain = sections.filter(({ divided }) => !divided).flatMap(({ leaves }) => leaves);
  return [
    "<!-- Generated from values.yaml and its schema by `make generate`. -->",
    "# Values of the chart",
    "A key or value that cannot be is refused with its path before anything is applied.",
    rows(plain),
    ...sections
      .filter(({ divided }) => divided)
      .flatMap(({ name, intro, leaves }) => [`## ${name}`, ...(intro === "" ? [] : [intro]), rows(leaves)]),
    "",
  ].join("\n\n");
}
