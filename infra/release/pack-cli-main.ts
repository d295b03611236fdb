/**
 * Makes the npm package `@loraline/cli`: the CLI and all that it imports in plain JavaScript, without a checkout and without Python.
 *   node --conditions=@loraline/source infra/release/pack-cli-main.ts FOLDER
 * What starts a server (`up`, `demo`) and what merges weights needs a checkout, and says what is missing.
 */
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { version } from "@loraline/contracts";
import { rolldown } from "rolldown";
import { parse } from "yaml";

const root = join(import.meta.dirname, "../..");
const [out] = process.argv.slice(2);
if (out === undefined) throw new Error("usage: pack-cli-main.ts FOLDER");
const { catalog } = parse(readFileSync(join(root, "pnpm-workspace.yaml"), "utf8")) as { catalog: Record<string, string> };

/** Native, so npm installs it for the machine. Everything else is in the bundle, our patches of it included. */
const native = ["tokenizers", "sharp"];

rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, "bin"), { recursive: true });
const bundle = await rolldown({
  cwd: root,
  // The last one is a thread, started by its file's name.
  input: {
    main: "packages/cli/src/main.ts",
    "kubectl-main": "packages/cli/src/kubectl-main.ts",
    "encode-thread-main": "packages/tokens/src/encoder/encode-thread-main.ts",
  },
  platform: "node",
  resolve: { conditionNames: ["@loraline/source", "node", "import", "default"] },
  external: native,
  onLog(level, log, handler) {
    // Of others' code, which we do not write.
    if (level !== "warn") handler(level, log);
  },
});
await bundle.write({ dir: join(out, "dist"), format: "esm", chunkFileNames: "[name]-[hash].js", comments: { legal: true } });
await bundle.close();
for (const [name, program] of [
  ["loraline", "main"],
  ["kubectl-loraline", "kubectl-main"],
])
  writeFileSync(
    join(out, `bin/${name}.js`),
    `#!/usr/bin/env node
process.env.LORALINE_ROOT ??= process.cwd();
await import("../dist/${program}.js");
`,
    { mode: 0o755 },
  );
writeFileSync(
  join(out, "package.json"),
  JSON.stringify(
    {
      name: "@loraline/cli",
      version,
      description: "The command line of Loraline, a LoRA production line.",
      license: "Apache-2.0",
      type: "module",
      bin: { loraline: "bin/loraline.js", "kubectl-loraline": "bin/kubectl-loraline.js" },
      files: ["bin", "dist"],
      engines: { node: ">=24" },
      dependencies: Object.fromEntries(native.map((name) => [name, catalog[name]])),
    },
    null,
    2,
  ),
);
cpSync(join(root, "LICENSE"), join(out, "LICENSE"));
writeFileSync(
  join(out, "README.md"),
  `# @loraline/cli

\`npx @loraline/cli --help\`: trains, asks and promotes adapters on a Loraline that runs elsewhere, and looks at data without one.

\`\`\`sh
npx @loraline/cli data check data.jsonl                  # needs no server
export LORALINE_URL=https://loraline.example.com LORALINE_API_KEY=ll-…
npx @loraline/cli run data.jsonl --name mine
npx @loraline/cli chat TENANT/mine "Who are you?"
\`\`\`

\`npm install --global @loraline/cli\` also gives kubectl a command: \`kubectl loraline -n NAMESPACE runs\` asks the Loraline of that namespace, with kubectl's own rights.

A server on this machine (\`up\`, \`demo\`) needs a checkout.
`,
);
