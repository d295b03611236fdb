/** The pictures of a question. They go to the models inside the request, and nowhere else. */
import { type ReactNode, useState } from "react";
import { useTexts } from "../../texts/texts.tsx";
import { ErrorNote } from "../../ui/states.tsx";
import { Field } from "../../ui/controls.tsx";

export interface Picture {
  name: string;
  /** A data URL. */
  url: string;
}

const types = "image/png,image/jpeg,image/webp,image/gif";

export function Pictures({ pictures, set }: { pictures: readonly Picture[]; set: (pictures: readonly Picture[]) => void }): ReactNode {
  const t = useTexts();
  const [error, setError] = useState<unknown>();
  const add = (files: FileList | null): void => {
    setError(undefined);
    Promise.all([...(files ?? [])].map(readPicture)).then((read) => set([...pictures, ...read]), setError);
  };
  return (
    <div className="stack-s">
      <Field label={t.playground.pictures} hint={t.playground.picturesHint}>
        {(ids) => (
          <input
            {...ids}
            type="file"
            accept={types}
            multiple
            onChange={({ target }) => {
              add(target.files);
              // The same file can be chosen again after it was removed.
              target.value = "";
            }}
          />
        )}
      </Field>
      {pictures.length > 0 && (
        <ul className="row">
          {pictures.map((picture, at) => (
            <li key={at} className="row">
              <img className="thumbnail" src={picture.url} alt={picture.name} />
              <button
                type="button"
                className="button small"
                aria-label={t.playground.remove(picture.name)}
                onClick={() => set(pictures.filter((one) => one !== picture))}
              >
                ×
              </button>
            </li>
          ))}
        </ul>
      )}
      {error !== undefined && <ErrorNote error={error} title={t.common.failedTitle} />}
    </div>
  );
}

const readPicture = (file: File): Promise<Picture> =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("loadend", () => {
      const { result: url, error } = reader;
      if (typeof url === "string") resolve({ name: file.name, url });
      else reject(error ?? new Error(file.name));
    });
    reader.readAsDataURL(file);
  });
