/** Sends a file and says how far it is, which `fetch` cannot. */
import { ApiError } from "@loraline/client";
import { errorBody, fileObject } from "@loraline/contracts";

/** @param onShare - the part that is sent, 0 to 1. @returns the dataset's id. */
export function uploadFile(file: File, onShare: (share: number) => void): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const request = new XMLHttpRequest();
  request.open("POST", "/v1/files");
  request.upload.addEventListener("progress", ({ loaded, total }) => onShare(total === 0 ? 0 : loaded / total));
  request.addEventListener("error", () => reject(new ApiError("UNREACHABLE", `${location.origin} does not answer.`)));
  request.addEventListener("load", () => {
    const body: unknown = ((): unknown => {
      try {
        return JSON.parse(request.responseText);
      } catch {
        return undefined;
      }
    })();
    const taken = fileObject.safeParse(body);
    if (request.status === 200 && taken.success) return resolve(taken.data.id.replace(/^file-/, ""));
    const { data } = errorBody.safeParse(body);
    reject(
      new ApiError(data?.error.code ?? "HTTP_ERROR", data?.error.message ?? `${request.status} ${request.statusText}`, {
        status: request.status,
        param: data?.error.param ?? null,
      }),
    );
  });
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file, file.name);
  request.send(form);
  return promise;
}
