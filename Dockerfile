# docker build --build-arg JAX=cpu|cuda13|cuda12 -t crjax .
FROM python:3.12-slim
ARG JAX=cpu
WORKDIR /crjax
# Packages first: they change less often than the code.
COPY requirements.txt .
RUN extra=$([ "$JAX" = cpu ] || echo "jax[$JAX]") && \
    pip install --no-cache-dir -r requirements.txt $extra
COPY . .
CMD ["python", "-m", "crjax.execution", "probe"]
