/** `POST /v1/loraline/adapters`: receives an adapter that was trained elsewhere, checks it, and requests a run for it. */
import { isDeepStrictEqual } from "node:util";
import {
  addAdapterBody,
  addAdapterSettings,
  adapterManifest,
  type BlobRef,
  buckets,
  everyKeyOf,
  parseRunSpec,
  type Problem,
  runRequested,
  type RunSpec,
  type RunState,
} from "@loraline/contracts";
import {
  adapterFiles,
  defaultHubEndpoint,
  hubFileUrl,
  hubHeaders,
  judgeImport,
  judgeRunSpec,
  listHubFiles,
  readAdapterHead,
} from "@loraline/models";
import { getJson } from "@loraline/objects";
import { createGuardedFetch, type GuardedFetch, PermanentError, RetryLaterError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import type { z } from "zod";
import type { Caller } from "../access/auth.ts";
import { checkModel, seesAdapter } from "../access/decide-models.ts";
import { contentLengthOf, type Upload } from "../access/uploads.ts";
import { fieldText, parsedBody } from "../body.ts";
import type { GatewayContext } from "../context.ts";
import { enginesFor } from "../inference/decide-route.ts";
import { badRequest, badRequestOf } from "../errors.ts";
import { idempotencyKeyOf, idsOfKey, madeEarlier } from "../idempotency.ts";
import { requestSpan } from "../tracing.ts";

const foldWithinMs = 1000;
/** Longest time of a fetch: less than the five minutes after which a waiting client gives up. */
const fetchWithinMs = 4 * 60_000;
const configLimitBytes = 1024 * 1024;

/** How adapters are fetched if the request names them instead of sending their files. */
export interface ImportOptions {
  /** `host:port` of internal hosts that may be reached. */
  allow?: readonly string[];
  hubEndpoint?: string;
  hubToken?: string | undefined;
}

type Settings = z.output<typeof addAdapterSettings>;
type From = z.output<typeof addAdapterBody>["from"];
type Files = { config: BlobRef; weights: BlobRef };

/** Makes the run spec of the import. `cameFrom` is the origin of the files, if the settings do not name one. */
export function runSpecFromSettings(
  { name, source, probes, system, any_base, ...fields }: Settings,
  files: Files,
  cameFrom: string,
): ReturnType<typeof parseRunSpec> {
  const asked = {
    ...(probes === undefined ? {} : { probes }),
    ...(system === undefined ? {} : { system }),
    ...(any_base === undefined ? {} : { any_base }),
  };
  return parseRunSpec({ ...fields, adapter: name, method: { type: "import", source: source ?? cameFrom, ...files, ...asked } });
}

const isPickle = (name: string): boolean => /\.(?:bin|pt|pth|pkl|pickle|ckpt)$/i.test(name);
const pickleRefused = (name: string): PermanentError =>
  badRequest(
    "ADAPTER_PICKLE_REFUSED",
    `${name} is a pickle, which can run code when it is read. Save the adapter as safetensors: \`model.save_pretrained(DIR, safe_serialization=True)\`.`,
    name,
  );
const missing = (name: string, where: string): PermanentError =>
  badRequest("ADAPTER_FILES_MISSING", `${where} has no ${name}; an adapter is ${adapterFiles.config} and ${adapterFiles.weights}.`, name);

export function addAdapterRoutes(context: GatewayContext, imports: ImportOptions): (app: FastifyInstance) => void {
  const { bus, objects, quotas, uploads, state, table, uploadLimitBytes } = context;

  const limitOf = (name: string): number => (name === adapterFiles.config ? configLimitBytes : uploadLimitBytes);
  const store = (
    tenant: string,
    bytes: AsyncIterable<Uint8Array>,
    { name, upload, sha256 }: { name: string; upload: Upload; sha256?: string | undefined },
  ): Promise<BlobRef> =>
    objects.put(
      tenant,
      "adapter-file",
      counted(bytes, { name, limit: limitOf(name), upload }),
      sha256 === undefined ? {} : { digest: `sha256:${sha256}` },
    );

  /** Reads the form part by part. A file that is not part of an adapter is refused by its name, before its bytes are read. */
  const receive = async (request: FastifyRequest, upload: Upload): Promise<{ settings: Settings; files: Files; source: string }> => {
    const { tenant } = request.caller;
    let settings: Settings | undefined;
    const stored = new Map<string, BlobRef>();
    for await (const part of request.parts({ limits: { files: 2 } })) {
      if (part.type === "field") {
        if (part.fieldname !== "settings")
          throw badRequest("unknown_field", `The form has a field "${part.fieldname}". Send "settings" and two files.`, part.fieldname);
        settings = parsedBody(addAdapterSettings, parseJson(fieldText(part.value)));
        checkModel(request.caller, settings.name);
        continue;
      }
      const name = part.filename;
      if (isPickle(name)) throw pickleRefused(name);
      // Only these two names are accepted, so no file name can lead out of a folder.
      if (name !== adapterFiles.config && name !== adapterFiles.weights) {
        throw badRequest(
          "unknown_file",
          `"${name.slice(0, 200)}" is no part of an adapter. Send ${adapterFiles.config} and ${adapterFiles.weights}.`,
          name.slice(0, 200),
        );
      }
      stored.set(name, await store(tenant, part.file, { name, upload }));
    }
    if (settings === undefined)
      throw badRequest("missing_settings", 'The form has no field "settings": JSON with at least `base` and `name`.', "settings");
    const [config, weights] = [adapterFiles.config, adapterFiles.weights].map((name) => stored.get(name));
    if (config === undefined) throw missing(adapterFiles.config, "the upload");
    if (weights === undefined) throw missing(adapterFiles.weights, "the upload");
    return { settings, files: { config, weights }, source: "upload" };
  };

  /** The versions with this manifest that the caller may see. A key that is bound to adapters may not copy others by their digests. */
  const versionsOf = async (caller: Caller, manifest: string) =>
    (await (await bus.bucket(buckets.adapters)).entries(everyKeyOf(caller.tenant), { skipUnreadable: true })).flatMap(
      ({ value: { adapter, versions } }) =>
        seesAdapter(caller, adapter) ? versions.filter((version) => version.manifest.digest === manifest) : [],
    );

  const fetchAll = async (
    caller: Caller,
    from: From,
    signal: AbortSignal,
  ): Promise<{ files: Files; source: string; system?: string | undefined }> => {
    const { tenant } = caller;
    if ("object" in from) {
      const unknown = () => badRequest("OBJECT_MISSING", `there is no adapter ${from.object} in the store of this tenant.`, "from.object");
      const versions = await versionsOf(caller, from.object);
      if (caller.models !== null && versions.length === 0) throw unknown();
      const manifest = await getJson(objects, tenant, { kind: "adapter", digest: from.object }, adapterManifest).catch((error: unknown) => {
        if (!(error instanceof PermanentError) || error.code !== "OBJECT_MISSING") throw error;
        throw unknown();
      });
      const [config, weights] = [adapterFiles.config, adapterFiles.weights].map(
        (name) => manifest.files.find(({ path }) => path === name)?.blob,
      );
      if (config === undefined) throw missing(adapterFiles.config, from.object);
      if (weights === undefined) throw missing(adapterFiles.weights, from.object);
      // A version is served with the system prompt that it was trained with, under whatever name.
      const system = versions.findLast((version) => version.system)?.system ?? undefined;
      return { files: { config, weights }, source: from.object, system };
    }
    using _import = quotas.beginImport(tenant);
    using upload = await uploads.begin(tenant, null);
    await using fetch = createGuardedFetch({ allow: imports.allow ?? [] });
    const get = async (name: string, url: string, headers: Record<string, string> = {}, sha256?: string): Promise<BlobRef> => {
      const { body } = await fetch.get(url, { maxBytes: limitOf(name), timeoutMs: fetchWithinMs, headers, signal });
      return store(tenant, body, { name, upload, sha256 });
    };
    if ("url" in from) {
      if (isPickle(new URL(from.url, "https://none").pathname)) throw pickleRefused(from.url);
      const folder = from.url.replace(/\/+$/, "");
      const config = await get(adapterFiles.config, `${folder}/${adapterFiles.config}`);
      return { files: { config, weights: await get(adapterFiles.weights, `${folder}/${adapterFiles.weights}`) }, source: folder };
    }
    return await fromHub(fetch, from, get, signal);
  };

  const fromHub = async (
    fetch: GuardedFetch,
    { hub, revision = "main", folder }: Extract<From, { hub: string }>,
    get: (name: string, url: string, headers: Record<string, string>, sha256?: string) => Promise<BlobRef>,
    signal: AbortSignal,
  ): Promise<{ files: Files; source: string }> => {
    const repository = {
      endpoint: imports.hubEndpoint ?? defaultHubEndpoint,
      kind: "models" as const,
      name: hub,
      revision,
      token: imports.hubToken,
    };
    const { commit, files } = await listHubFiles(fetch, repository, signal);
    const inside = folder === undefined ? "" : `${folder}/`;
    const blobOf = async (name: string): Promise<BlobRef> => {
      const file = files.find(({ path }) => path === inside + name);
      if (file === undefined) {
        const pickle = files.find(({ path }) => path === `${inside}adapter_model.bin`);
        if (name === adapterFiles.weights && pickle !== undefined) throw pickleRefused(pickle.path);
        throw missing(name, `${hub}@${revision}${folder === undefined ? "" : `, folder ${folder},`}`);
      }
      return get(name, hubFileUrl({ ...repository, revision: commit }, file.path), hubHeaders(repository), file.sha256);
    };
    const config = await blobOf(adapterFiles.config);
    return {
      files: { config, weights: await blobOf(adapterFiles.weights) },
      source: `${hub}@${commit}${folder === undefined ? "" : `/${folder}`}`,
    };
  };

  /** @throws PermanentError 400 if no engine could ever serve the adapter. */
  const judged = async (tenant: string, settings: Settings, files: Files, source: string): Promise<RunSpec> => {
    const engines = enginesFor(table.view(), tenant);
    if (engines.length === 0) {
      throw new RetryLaterError("NO_ENGINE", 5000, "No engine is registered yet, so no base is known. Try again when one is up.");
    }
    const parsed = runSpecFromSettings(settings, files, source);
    if ("problems" in parsed) throw badRequestOf(parsed.problems);
    const { spec } = parsed;
    const parts = await readAdapterHead(objects, tenant, files).catch((error: unknown) => {
      if (error instanceof PermanentError) throw badRequestOf([error]);
      throw error;
    });
    const [first, ...others] = [...judgeRunSpec(spec, engines), ...judgeImport(parts, settings, engines)];
    if (first !== undefined) throw badRequestOf([first, ...others] as [Problem, ...Problem[]]);
    return spec;
  };

  /** Requests the run, once for each idempotency key. */
  const request = async ({ tenant, by }: Caller, key: string | undefined, spec: RunSpec): Promise<RunState> => {
    const ids = key === undefined ? [] : idsOfKey({ tenant, key, nowMs: Date.now() });
    const earlier = await madeEarlier(ids, {
      what: "run",
      read: (id) => state.run(tenant, id),
      isSame: (known) => isDeepStrictEqual(known.spec, spec),
    });
    if (earlier !== undefined) return earlier;
    await quotas.admitRun(tenant, spec);
    const runId = ids[0] ?? ulid();
    requestSpan()?.setAttributes({ "loraline.run.id": runId });
    if (spec.method.type === "import") {
      // The first may have been stored minutes ago, and the collector does not know that it is needed before the run is requested.
      for (const file of [spec.method.config, spec.method.weights])
        if ((await objects.touch(tenant, file)) === undefined)
          throw new RetryLaterError("files_deleted_meanwhile", 1000, "The adapter's files were deleted meanwhile. Send them again.");
    }
    await bus.publish(runRequested, { tenant, id: runId }, { spec, by });
    await state.runFolded(tenant, runId, () => true, foldWithinMs);
    const run = await state.run(tenant, runId);
    if (run === undefined) throw new Error(`run ${runId} was stored, but cannot be read back`);
    return run;
  };

  return (app) => {
    app.post("/loraline/adapters", async (incoming, reply) => {
      const { caller } = incoming;
      const key = idempotencyKeyOf(incoming.headers);
      if (incoming.isMultipart()) {
        using upload = await uploads.begin(caller.tenant, contentLengthOf(incoming.headers));
        const { settings, files, source } = await receive(incoming, upload);
        return await reply.code(202).send(await request(caller, key, await judged(caller.tenant, settings, files, source)));
      }
      const { from, ...settings } = parsedBody(addAdapterBody, incoming.body);
      checkModel(caller, settings.name);
      const { files, source, system } = await fetchAll(caller, from, context.signal);
      const asked = { ...settings, system: settings.system ?? system };
      return reply.code(202).send(await request(caller, key, await judged(caller.tenant, asked, files, source)));
    });
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw badRequest("invalid_settings", `The field "settings" is not JSON: ${(error as Error).message}`, "settings");
  }
}

/** Passes bytes on; fails when there are more than `limit`, or than the upload may have, so that nothing is stored. */
async function* counted(
  source: AsyncIterable<Uint8Array>,
  { name, limit, upload }: { name: string; limit: number; upload: Upload },
): AsyncGenerator<Uint8Array, void, undefined> {
  let bytes = 0;
  for await (const chunk of source) {
    bytes += chunk.byteLength;
    if (bytes > limit) {
      throw new PermanentError("file_too_large", `${name} is larger than ${limit} bytes, which this gateway accepts at most.`, {
        status: 413,
        param: name,
      });
    }
    await upload.arrived(chunk.byteLength);
    yield chunk;
  }
  upload.whole();
}
