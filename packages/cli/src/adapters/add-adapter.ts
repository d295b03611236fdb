/** `loraline adapters add`: a LoRA that was trained elsewhere, from a folder, the hub, an address or the store. */
import { openAsBlob } from "node:fs";
import { lstat, readdir, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, resolve, sep } from "node:path";
import type { ApiClient } from "@loraline/client";
import type { addAdapterBody, addAdapterSettings } from "@loraline/contracts";
import { adapterFiles } from "@loraline/models";
import type { z } from "zod";
import { exitCodes, Failure } from "../failure.ts";
import { onlyBase } from "../runs/only-base.ts";
import { follow } from "../runs/start-run.ts";
import { type Terminal, writeJson, writeLine } from "../terminal.ts";

type Settings = z.input<typeof addAdapterSettings>;
type From = z.input<typeof addAdapterBody>["from"];

export interface AddAdapterFlags {
  base?: string;
  name?: string;
  folder?: string;
  anyBase: boolean;
  probe?: string[];
  system?: string;
  promote?: "auto" | "manual" | "canary";
  follow: boolean;
  json: boolean;
}

const usage = (code: string, message: string, param: string): Failure => new Failure(exitCodes.usage, code, message, { param });

/** @returns the exit code. */
export async function addAdapter(api: ApiClient, source: string, flags: AddAdapterFlags, terminal: Terminal): Promise<number> {
  const isFolder = await stat(source).then(
    (info) => info.isDirectory(),
    () => false,
  );
  const found = isFolder ? await filesOf(source) : whereOf(source, flags.folder);
  const settings: Settings = {
    base: flags.base ?? (await onlyBase(api)),
    name: flags.name ?? nameOf(isFolder ? resolve(source) : source, flags.folder),
    ...(isFolder ? { source: basename(resolve(source)) } : {}),
    ...(flags.anyBase ? { any_base: true } : {}),
    ...(flags.probe === undefined ? {} : { probes: flags.probe }),
    ...(flags.system === undefined ? {} : { system: flags.system }),
    ...(flags.promote === undefined ? {} : { promote: flags.promote }),
  };
  const run = await api.addAdapter({ body: "config" in found ? await formOf(settings, found) : { ...settings, from: found } });
  if (!flags.follow) {
    if (flags.json) writeJson(terminal.out, run);
    else writeLine(terminal.out, run.runId);
    return exitCodes.ok;
  }
  writeLine(terminal.err, `run ${run.runId}`);
  return follow(api, run.runId, flags, terminal);
}

/** The files are read from the disk while they are sent, whatever their size. */
async function formOf(settings: Settings, { config, weights }: { config: string; weights: string }): Promise<FormData> {
  const form = new FormData();
  form.set("settings", JSON.stringify(settings));
  form.set("config", await openAsBlob(config), adapterFiles.config);
  form.set("weights", await openAsBlob(weights), adapterFiles.weights);
  return form;
}

/**
 * The two files of an adapter in PEFT's layout; nothing else is sent.
 * @throws Failure ADAPTER_PICKLE_REFUSED, ADAPTER_FILES_MISSING, SYMLINK_REFUSED
 */
async function filesOf(folder: string): Promise<{ config: string; weights: string }> {
  const names = await readdir(folder);
  const path = async (name: string): Promise<string> => {
    if (!names.includes(name)) {
      const pickle = names.find((other) => /\.(?:bin|pt|pth|pkl|ckpt)$/.test(other));
      if (name === adapterFiles.weights && pickle !== undefined) {
        throw usage(
          "ADAPTER_PICKLE_REFUSED",
          `${join(folder, pickle)} is a pickle, which can run code when it is read. Save the adapter as safetensors: \`model.save_pretrained(DIR, safe_serialization=True)\`.`,
          pickle,
        );
      }
      throw usage(
        "ADAPTER_FILES_MISSING",
        `${folder} has no ${name}; an adapter is ${adapterFiles.config} and ${adapterFiles.weights}.`,
        name,
      );
    }
    const file = join(folder, name);
    const info = await lstat(file);
    if (info.isSymbolicLink() && !(await leadsInside(folder, file))) {
      throw usage("SYMLINK_REFUSED", `${file} is a link that leads out of the folder, to ${await realpath(file)}. Copy the file.`, name);
    }
    if (!(await stat(file)).isFile()) throw usage("ADAPTER_FILES_MISSING", `${file} is not a file.`, name);
    return file;
  };
  return { config: await path(adapterFiles.config), weights: await path(adapterFiles.weights) };
}

/** Whether a link stays inside the folder, or leads to the blobs beside it: the hub's cache keeps a revision as such links. */
async function leadsInside(folder: string, file: string): Promise<boolean> {
  const [real, target] = await Promise.all([realpath(folder), realpath(file)]);
  const parent = dirname(real);
  const blobs = basename(parent) === "snapshots" ? join(dirname(parent), "blobs") : undefined;
  return target.startsWith(real + sep) || (blobs !== undefined && target.startsWith(blobs + sep));
}

function whereOf(source: string, folder: string | undefined): From {
  if (/^sha256:[0-9a-f]{64}$/.test(source)) return { object: source as `sha256:${string}` };
  if (/^https?:\/\//.test(source)) return { url: folder === undefined ? source : `${source.replace(/\/+$/, "")}/${folder}` };
  const [hub = "", revision] = source.split("@");
  if (/^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(hub)) {
    return { hub, ...(revision === undefined ? {} : { revision }), ...(folder === undefined ? {} : { folder }) };
  }
  throw usage(
    "ADAPTER_NOT_FOUND",
    `there is no folder ${source}, and it is neither a model of the hub (organisation/name), nor an https address, nor the digest of an adapter (sha256:…).`,
    source,
  );
}

/** `Org/My_Pirate-LoRA@main` → `my-pirate-lora` */
function nameOf(source: string, folder: string | undefined): string {
  const last = (folder ?? source.replace(/@[^/]*$/, "")).split(/[\\/]/).findLast((part) => part !== "") ?? "";
  const name = source.startsWith("sha256:")
    ? ""
    : last
        .toLowerCase()
        .replace(/[^a-z0-9]+/g, "-")
        .replace(/^-+/, "")
        .slice(0, 63)
        .replace(/-+$/, "");
  if (name === "") throw usage("NAME_MISSING", "say the adapter's name with --name.", "--name");
  return name;
}
