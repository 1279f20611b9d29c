"""An exported folder on the Hugging Face hub."""

from pathlib import Path

from jaxtune.errors import UserError, first_line


def check_push(name: str) -> None:
    """Raises UserError for what can be known before an export: the hub's package, the name, a login."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise UserError("--push needs huggingface_hub, which is not installed: `pip install jaxtune[hub]`") from error
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        raise UserError(f"--push {name}: {first_line(error)} Write owner/model.") from error
    if huggingface_hub.get_token() is None:
        raise UserError("--push needs a token of the hub that may write: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str, *, private: bool = False, message: str = "") -> str:
    """Upload a folder as the model `owner/model`, which is made where it is not there; returns its address."""
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=str(folder), repo_type="model", commit_message=message or "Upload"
        )
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{folder} is written, but the hub did not take it as {name}: {first_line(error)}. "
            f"`hf upload {name} {folder}` tries again"
        ) from error
    return str(made)
