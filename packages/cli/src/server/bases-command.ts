/** `loraline bases` and `bases add`: the bases on this machine. */
import { join, resolve } from "node:path";
import { findLine } from "@loraline/local/state";
import { type AddCommands, examples } from "../command.ts";
import { byteWords, shortPath, table } from "../terminal.ts";
import { basesOption } from "./start-options.ts";

export const addBasesCommands: AddCommands = (program, { globals, print, root, env, terminal }) => {
  const bases = program
    .command("bases")
    .description("list the bases on this machine, and which of them the running server serves")
    .addOption(basesOption(root))
    .addHelpText(
      "after",
      examples(
        "loraline bases",
        "loraline bases add ./my-base",
        "loraline bases add ./my-base-awq --derived-from my-base",
        "loraline bases add Qwen/Qwen2.5-0.5B-Instruct",
        "loraline up --base my-base",
      ),
    )
    .action(async ({ bases: dir }: { bases: string }) => {
      // Loaded only now, since its libraries take long to load.
      const { listBases } = await import("@loraline/local/bases");
      const served = (await findLine(globals().state))?.engines.map(({ base }) => base) ?? [];
      const here = (await listBases(resolve(dir))).map((base) => ({ ...base, served: served.includes(base.name) }));
      print(here, () =>
        here.length === 0
          ? [`no bases in ${shortPath(resolve(dir))}; \`loraline bases add\` makes one`]
          : [
              ...table([
                ["BASE", "SERVED", "SIZE", "CONTEXT", "MODEL", "FROM"],
                ...here.map(({ name, served: is, bytes, context, architecture, hub }) => [
                  name,
                  is ? "yes" : "-",
                  byteWords(bytes),
                  context === null ? "-" : String(context),
                  architecture ?? "-",
                  hub ?? "-",
                ]),
              ]),
              ...here.flatMap(({ name, made }) => (made === null ? [] : [`${name}: ${made}`])),
              ...here.flatMap(({ name, derivedFrom }) =>
                derivedFrom === null ? [] : [`${name}: made of ${derivedFrom}, whose adapters it serves, too`],
              ),
            ],
      );
    });

  bases
    .command("add")
    .description("copy a base to the others: a folder in Hugging Face's layout, or a model of the hub")
    .argument("<source>", "folder, or organisation/name[@revision]")
    .option("--name <name>", "what it is called here (default: as the source is)")
    .option("--derived-from <base>", "of a quantised base: the one here that it was made of, whose adapters it serves, too")
    .action(async (source: string, { name, derivedFrom }: { name?: string; derivedFrom?: string }) => {
      const { addBase } = await import("@loraline/local/bases");
      const { bases: dir } = bases.opts<{ bases: string }>();
      const added = await addBase({
        source,
        name,
        derivedFrom,
        basesDir: resolve(dir),
        python: env.LORALINE_PYTHON ?? join(root, ".venv/bin/python"),
        env,
        signal: terminal.signal,
        progress: terminal.err,
      });
      print(added, () => [
        `${added.name}: ${byteWords(added.bytes)} in ${shortPath(added.dir)}`,
        `Serve it: loraline up --base ${added.name}   (several: --base once for each)`,
      ]);
    });
};
