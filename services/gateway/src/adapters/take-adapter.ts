/** `/v1/loraline/adapters/{adapter}/versions/{version}/files`: a version as other programs load it, in PEFT's layout, with its model card. */
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import {
  adapterKey,
  adapterManifest,
  type AdapterVersion,
  type BlobRef,
  buckets,
  type DatasetState,
  holdingKey,
} from "@loraline/contracts";
import { adapterFiles } from "@loraline/models";
import { getJson } from "@loraline/objects";
import { PermanentError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { createAudited } from "../access/audit.ts";
import type { GatewayContext } from "../context.ts";
import { notFound } from "../errors.ts";
import { ownAdapterName } from "../openai-ids.ts";
import { configToTake, type KnownOfVersion, modelCardOf } from "./model-card.ts";

const cardFile = "README.md";

/** A file: bytes of the store, or a text that is made when it is asked for. */
type TakenFile = { name: string; blob: BlobRef } | { name: string; text: string };

export async function takeAdapterRoutes(context: GatewayContext): Promise<(app: FastifyInstance) => void> {
  const { bus, objects, state, table, downloads } = context;
  const audited = createAudited(context);
  const [adapters, holdings] = await Promise.all([bus.bucket(buckets.adapters), bus.bucket(buckets.holdings)]);

  const existing = async (request: FastifyRequest): Promise<{ adapter: string; engine: string; version: AdapterVersion }> => {
    const { adapter: given, version: number } = request.params as { adapter: string; version: string };
    const { tenant } = request.caller;
    const name = ownAdapterName(tenant, given);
    const found = /^[a-z0-9-]+$/.test(name) ? (await adapters.get(adapterKey({ tenant, adapter: name })))?.value : undefined;
    if (found === undefined) throw notFound("adapter", given, "adapter");
    const version = found.versions.find((one) => String(one.version) === number);
    if (version === undefined || version.status === "deleted") throw notFound("version", `${name}@${number}`, "version");
    return { adapter: name, engine: found.engine, version };
  };

  const datasetOf = async (tenant: string, id: string | undefined): Promise<DatasetState | undefined> => {
    const found = id === undefined ? undefined : await state.dataset(tenant, id);
    return found?.status === "deleted" ? undefined : found;
  };

  const filesOf = async (request: FastifyRequest): Promise<{ known: KnownOfVersion; files: TakenFile[] }> => {
    const { tenant } = request.caller;
    const { adapter, engine, version } = await existing(request);
    const gone = (error: unknown): never => {
      if (error instanceof PermanentError && error.code === "OBJECT_MISSING")
        throw notFound("version", `${adapter}@${version.version}`, "version");
      throw error;
    };
    const manifest = await getJson(objects, tenant, version.manifest, adapterManifest).catch(gone);
    const blobOf = (name: string): BlobRef =>
      manifest.files.find(({ path }) => path === name)?.blob ??
      gone(new PermanentError("OBJECT_MISSING", `${version.digest} has no ${name}`));
    const held = await holdings.entries(holdingKey({ replicaKey: "*.*", adapterKey: adapterKey({ tenant, adapter }) }), {
      skipUnreadable: true,
    });
    const run = await state.run(tenant, version.runId);
    const [dataset, validation] = await Promise.all([datasetOf(tenant, run?.spec.dataset), datasetOf(tenant, run?.spec.validation)]);
    const known: KnownOfVersion = {
      adapter,
      version,
      manifest,
      origin: table.view().engine(engine)?.origin ?? undefined,
      run,
      dataset,
      validation,
      proofs: held
        .flatMap(({ value }) => value.adapters)
        .flatMap(({ engineName, proof }) => (engineName === version.engineName && proof !== null ? [proof] : []))
        .toSorted((a, b) => (a.provenAt < b.provenAt ? -1 : 1)),
    };
    const config = await text(await objects.get(tenant, blobOf(adapterFiles.config)).catch(gone));
    return {
      known,
      files: [
        { name: cardFile, text: modelCardOf(known) },
        { name: adapterFiles.config, text: configToTake(config, known) },
        { name: adapterFiles.weights, blob: blobOf(adapterFiles.weights) },
      ],
    };
  };

  return (app) => {
    app.get("/loraline/adapters/:adapter/versions/:version/files", async (request) => {
      const { known, files } = await filesOf(request);
      return {
        adapter: known.adapter,
        version: known.version.version,
        digest: known.version.digest,
        base: known.manifest.base,
        origin: known.origin ?? null,
        data: files.map((file) =>
          "blob" in file
            ? { name: file.name, bytes: file.blob.size, sha256: file.blob.digest.slice("sha256:".length) }
            : { name: file.name, bytes: Buffer.byteLength(file.text), sha256: null },
        ),
      };
    });
    app.get("/loraline/adapters/:adapter/versions/:version/files/:file", async (request, reply) => {
      const { file: name } = request.params as { file: string };
      const { known, files } = await filesOf(request);
      const file = files.find((one) => one.name === name);
      if (file === undefined) throw notFound("file", name, "file");
      void reply.header("content-type", "application/octet-stream").header("content-disposition", `attachment; filename="${file.name}"`);
      if ("text" in file) return reply.send(file.text);
      const { blob } = file;
      downloads.begin(request.caller.tenant, reply);
      const deed = { action: "adapter.pull", target: `${known.adapter}@${known.version.version}`, details: { file: name } } as const;
      const bytes = await audited(request, deed, () => objects.get(request.caller.tenant, blob));
      return reply.header("content-length", file.blob.size).send(Readable.from(bytes, { objectMode: false }));
    });
  };
}
