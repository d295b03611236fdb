/**
 * Finds places where sources break the architecture: which packages may import which, which files are pure, and where `process` may be
 * used. Pure: files in, findings out.
 */
import { posix } from "node:path";
import { parseSync, Visitor } from "oxc-parser";

export interface SourceFile {
  /** Relative to the repository root, with forward slashes. */
  path: string;
  text: string;
}

export interface Manifest {
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
}

interface Repository {
  sources: readonly SourceFile[];
  /** package.json by folder; "" is the root. */
  manifests: ReadonlyMap<string, Manifest>;
}

/** Pure libraries. Each may import those before it; none uses NATS. */
const libraries = ["contracts", "runtime", "objects", "models", "datasets", "tokens"];
const before = (library: string): readonly string[] => libraries.slice(0, libraries.indexOf(library));
const serviceMayImport = [...libraries, "bus", "kube", "storage"];

/** The direction of imports: every package, with the packages that it may import. A new package must be added here. */
export const mayImport: Readonly<Record<string, readonly string[]>> = {
  "packages/contracts": [],
  "packages/runtime": [],
  "packages/objects": before("objects"),
  "packages/models": before("models"),
  "packages/datasets": before("datasets"),
  "packages/tokens": before("tokens"),
  "packages/bus": ["contracts", "runtime"],
  "packages/storage": ["contracts", "runtime", "objects", "bus"],
  "packages/kube": ["runtime"],
  "packages/client": ["contracts"],
  "packages/console": ["contracts", "client"],
  "packages/testkit": [...libraries, "bus", "kube"],
  "packages/local": [...serviceMayImport, "gateway", "ingest", "tokenize", "train", "serve"],
  "packages/cli": [...libraries, "client", "local"],
  "services/gateway": serviceMayImport,
  "services/ingest": serviceMayImport,
  "services/tokenize": serviceMayImport,
  "services/train": serviceMayImport,
  "services/serve": serviceMayImport,
  "services/operator": serviceMayImport,
};

/** Packages that also run in a browser, and the only packages from outside that they may import. */
const forBrowsers: Readonly<Record<string, readonly string[]>> = {
  "packages/contracts": ["zod"],
  "packages/client": ["zod", "eventsource-parser"],
  "packages/console": [
    "zod",
    "react",
    "react-dom",
    "@tanstack/react-query",
    "@tanstack/react-router",
    "@tanstack/react-virtual",
    "radix-ui",
    "uplot",
  ],
};

const pureName = /^(decide-[^/]+|fold-[^/]+|[^/]+-manifest|pack|detect)\.ts$/;
/** Packages that a pure file may import as values; types may come from anywhere. */
const pureMayUse: Readonly<Record<string, readonly string[] | "all">> = {
  zod: "all",
  "fastest-levenshtein": "all",
  "@loraline/contracts": "all",
  "@loraline/runtime": ["PermanentError", "RetryLaterError"],
  "@loraline/models": ["adapterFiles", "expandModules", "judgeAdapter", "judgeImport", "judgeRunSpec", "enginesServing", "kinship"],
};
const impureGlobals = new Set([
  "process",
  "performance",
  "fetch",
  "console",
  "setTimeout",
  "setInterval",
  "setImmediate",
  "queueMicrotask",
  "globalThis",
  "crypto",
]);

interface Import {
  specifier: string;
  line: number;
  /** Value names imported; "*" for a namespace, a dynamic import or an import for its effects. Empty: types only. */
  values: readonly string[];
}

interface Parsed {
  imports: readonly Import[];
  /** Lines that seem to build or parse a key of a KV bucket by hand. */
  keys: readonly number[];
  /** Lines that use a global of the platform: `process`, `Date.now`, `new Date()`, ... */
  globals: readonly { name: string; line: number }[];
}

/** `x-under-test.ts` is code that several test files of a package share. */
const isTest = (path: string) => /(?:\.test|-under-test)\.ts$/.test(path);

export function findViolations({ sources, manifests }: Repository): string[] {
  const found: string[] = [];
  const parsed = new Map(sources.map((file) => [file.path, parse(file)]));

  for (const { path } of sources) {
    const owner = /^((?:packages|services)\/[^/]+)\//.exec(path)?.[1];
    if (owner === undefined) continue;
    const allowed = mayImport[owner];
    if (allowed === undefined) {
      found.push(`${path}: ${owner} is unknown; enter it in tests/architecture.ts and in the design`);
      continue;
    }
    const { imports, globals } = parsed.get(path) as Parsed;
    const manifest = manifests.get(owner) ?? {};
    const mayUse = forBrowsers[owner];

    for (const { specifier, line } of imports) {
      const at = `${path}:${line}`;
      if (specifier.startsWith(".")) {
        const target = posix.join(posix.dirname(path), specifier);
        if (!target.startsWith(`${owner}/`)) found.push(`${at}: "${specifier}" reaches out of ${owner}; import the package by its name`);
        continue;
      }
      if (specifier === "node:process" || specifier === "process") {
        if (!isMain(path) && !mayTouchProcess(path)) found.push(`${at}: only main.ts may import "${specifier}"`);
        continue;
      }
      if (specifier.startsWith("node:")) {
        if (mayUse !== undefined && !isTest(path) && !isMain(path))
          found.push(`${at}: ${owner} may import only ${mayUse.join(", ")}, for it runs in browsers too`);
        continue;
      }
      const name = packageOf(specifier);
      const ours = /^@loraline\/(.+)$/.exec(name)?.[1];
      if (ours !== undefined) {
        const own = owner.endsWith(`/${ours}`);
        if (!own && !allowed.includes(ours) && !(isTest(path) && ours === "testkit"))
          found.push(`${at}: ${owner} may not import ${name} (allowed: ${allowed.join(", ") || "none of ours"})`);
      } else if (mayUse !== undefined && !mayUse.includes(name) && !isTest(path)) {
        found.push(`${at}: ${owner} may import only ${mayUse.join(", ")}, for it runs in browsers too`);
      }
      const declared =
        name in (manifest.dependencies ?? {}) ||
        (isTest(path) && (name in (manifest.devDependencies ?? {}) || name in (manifests.get("")?.devDependencies ?? {})));
      if (!declared && ours !== owner.split("/")[1]) found.push(`${at}: "${name}" is not declared in ${owner}/package.json`);
    }

    if (!isMain(path) && !mayTouchProcess(path))
      for (const { name, line } of globals) if (name === "process") found.push(`${path}:${line}: only main.ts may touch process`);

    if (pureName.test(posix.basename(path)) && !isTest(path)) found.push(...impurities(path, parsed, [path]));

    if (!isTest(path) && owner !== "packages/contracts" && imports.some(({ specifier }) => knowsKeys.test(specifier)))
      for (const line of (parsed.get(path) as Parsed).keys)
        if (!joinsOtherNames.has(path)) found.push(`${path}:${line}: a KV key by hand; take one from packages/contracts/src/kv-keys.ts`);
  }
  for (const circle of circlesOf(parsed)) found.push(`imports in a circle: ${circle.join(" → ")}`);
  return [...new Set(found)];
}

/** A program that is run, never imported: main.ts, or one more of a package, such as write-generated-main.ts. */
const isMain = (path: string) => /(^|-)main\.ts$/.test(posix.basename(path));
/** Fixtures belong to tests, and tests start and kill processes, for which they need `process`. */
const mayTouchProcess = (path: string) =>
  isTest(path) || path.startsWith("packages/testkit/") || path === "packages/runtime/src/spawn-guarded.ts";

const knowsKeys = /^@loraline\/(?:contracts|bus)$/;
/** Files that join names with dots which are not keys: LoRA names, Kubernetes events, decimal numbers, settings. */
const joinsOtherNames = new Set([
  "services/serve/src/lora-names.ts",
  "services/operator/src/kube-events.ts",
  "packages/datasets/src/containers/row-values.ts",
  "packages/console/src/data/settings-of.ts",
]);

/** Finds files that import each other in a circle, also by types. Reports one circle for each group of such files. */
function circlesOf(parsed: ReadonlyMap<string, Parsed>): string[][] {
  const targetsOf = (path: string): string[] =>
    (parsed.get(path)?.imports ?? [])
      .map(({ specifier }) => {
        if (specifier.startsWith(".")) return posix.join(posix.dirname(path), specifier);
        const name = /^@loraline\/([^/]+)$/.exec(specifier)?.[1];
        return ["packages", "services"].map((kind) => `${kind}/${name}/src/index.ts`).find((index) => parsed.has(index)) ?? "";
      })
      .filter((target) => parsed.has(target));
  const circles: string[][] = [];
  const done = new Set<string>();
  const visit = (path: string, chain: readonly string[]): void => {
    const at = chain.indexOf(path);
    if (at !== -1) circles.push([...chain.slice(at), path]);
    if (at !== -1 || done.has(path)) return;
    for (const target of targetsOf(path)) visit(target, [...chain, path]);
    done.add(path);
  };
  // Tests may import their package's index; other files of the package may not.
  for (const path of parsed.keys()) if (!isTest(path)) visit(path, []);
  return circles;
}

/** Follows imports of values, because a pure file is only as pure as the files whose values it imports. */
function impurities(path: string, parsed: ReadonlyMap<string, Parsed>, chain: readonly string[]): string[] {
  const { imports, globals } = parsed.get(path) as Parsed;
  const why = `(${chain.map((step) => posix.basename(step)).join(" → ")} must be pure)`;
  const found = globals.map(({ name, line }) => `${path}:${line}: ${name} ${why}`);
  for (const { specifier, line, values } of imports) {
    if (values.length === 0) continue;
    if (specifier.startsWith(".")) {
      const target = posix.join(posix.dirname(path), specifier);
      if (parsed.has(target) && !chain.includes(target)) found.push(...impurities(target, parsed, [...chain, target]));
      continue;
    }
    const allowed = pureMayUse[specifier];
    const refused = allowed === undefined ? values : allowed === "all" ? [] : values.filter((value) => !allowed.includes(value));
    if (refused.length > 0) found.push(`${path}:${line}: ${refused.join(", ")} from "${specifier}" ${why}`);
  }
  return found;
}

/** `@scope/name/deep` → `@scope/name`. */
function packageOf(specifier: string): string {
  return specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");
}

function parse({ path, text }: SourceFile): Parsed {
  const { program, module, errors } = parseSync(path, text);
  if (errors.length > 0) throw new Error(`${path}: ${errors[0]?.message}`);
  const line = (offset: number) => text.slice(0, offset).split("\n").length;

  const imports: Import[] = module.staticImports.map(({ moduleRequest, entries, start }) => ({
    specifier: moduleRequest.value,
    line: line(start),
    values: /^import\s+type\b/.test(text.slice(start)) ? [] : valueNames(entries),
  }));
  for (const { start, entries } of module.staticExports)
    for (const { moduleRequest, isType, importName } of entries)
      if (moduleRequest)
        imports.push({ specifier: moduleRequest.value, line: line(start), values: isType ? [] : [importName.name ?? "*"] });

  const keys: number[] = [];
  const globals: { name: string; line: number }[] = [];
  /** Whether an identifier is the name of something local (a property, a parameter), not a use of the global. */
  const notAUse = new Set<unknown>();
  const declared = new Set<string>();
  new Visitor({
    ImportExpression({ source, start }) {
      if (source.type === "Literal" && typeof source.value === "string")
        imports.push({ specifier: source.value, line: line(start), values: ["*"] });
    },
    MemberExpression(node) {
      if (!node.computed) notAUse.add(node.property);
      const { object, property } = node;
      if (object.type !== "Identifier" || property.type !== "Identifier") return;
      const name = `${object.name}.${property.name}`;
      if (name === "Date.now" || name === "Math.random") globals.push({ name, line: line(node.start) });
    },
    Property(node) {
      if (!node.computed && !node.shorthand) notAUse.add(node.key);
    },
    MethodDefinition(node) {
      if (!node.computed) notAUse.add(node.key);
    },
    PropertyDefinition(node) {
      if (!node.computed) notAUse.add(node.key);
    },
    TSPropertySignature(node) {
      if (!node.computed) notAUse.add(node.key);
    },
    TSMethodSignature(node) {
      if (!node.computed) notAUse.add(node.key);
    },
    LabeledStatement(node) {
      notAUse.add(node.label);
    },
    TemplateLiteral({ quasis, expressions, start }) {
      const texts = quasis.map(({ value }) => value.raw);
      const onlyDots = texts.every((one) => ["", ".", ".*", ".>"].includes(one)) && texts.join("") !== "";
      if (onlyDots && (expressions.length > 1 || /[*>]$/.test(texts.join("")))) keys.push(line(start));
    },
    VariableDeclarator({ id, init }) {
      const isSplit =
        init?.type === "CallExpression" &&
        init.callee.type === "MemberExpression" &&
        init.callee.property.type === "Identifier" &&
        init.callee.property.name === "split" &&
        init.arguments[0]?.type === "Literal" &&
        init.arguments[0].value === ".";
      if (isSplit && id.type === "ArrayPattern" && id.elements.length > 1) keys.push(line(id.start));
      if (id.type === "Identifier") declared.add(id.name);
    },
    FunctionDeclaration({ id, params }) {
      if (id) declared.add(id.name);
      for (const param of params) if (param.type === "Identifier") declared.add(param.name);
    },
    ArrowFunctionExpression({ params }) {
      for (const param of params) if (param.type === "Identifier") declared.add(param.name);
    },
    NewExpression({ callee, arguments: given, start }) {
      if (callee.type === "Identifier" && callee.name === "Date" && given.length === 0)
        globals.push({ name: "new Date()", line: line(start) });
    },
    Identifier(node) {
      if (impureGlobals.has(node.name) && !notAUse.has(node)) globals.push({ name: node.name, line: line(node.start) });
    },
  }).visit(program);
  return { imports, keys, globals: globals.filter(({ name }) => !declared.has(name)) };
}

function valueNames(entries: readonly { isType: boolean; importName: { name?: string | null; kind: string } }[]): string[] {
  if (entries.length === 0) return ["*"];
  return entries.filter(({ isType }) => !isType).map(({ importName }) => importName.name ?? "*");
}
